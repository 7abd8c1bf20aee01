"""Whether a GGUF file can carry a tokenizer: one with the vocabulary alone is written and read back, before training.

In a process of its own, without network or token. weights/gguf_tensors.py and llama_cpp_child.py say it of the file
that is released, of every test prompt.

>>> python -m appliance.weights.gguf_vocabulary FOLDER RESULT.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.process import child
from appliance.process.files import read_json, write_json
from appliance.weights import child_out_of_memory, gguf_convert, gguf_tensors, llama_cpp_model
from appliance.weights.proof import run_module

_FILE = "vocabulary.gguf"


@dataclass(frozen=True)
class Carried:
    """`refusal`: the converter's, in its own words; empty if it writes the file. `other_ids`: prompts that a reader of
    the file turns into other ids than training; `ids_unknown`: why that is not known.
    """

    refusal: str
    other_ids: Sequence[str] = ()
    ids_unknown: str = ""


def carried(folder: Path, texts: Sequence[tuple[str, Sequence[int]]], log_path: Path) -> Carried:
    """`folder`: config.json and the tokenizer's files as they will be released. `texts`: prompts without BOS, and the
    ids that training gives them.

    Raises EnvironmentUnavailable: the process was out of memory.
    """
    result = folder / "carried.json"
    write_json(result, [list(text) for text in texts])
    code, tail = run_module(__name__, [str(folder), str(result)], log_path)
    if code == 0:
        return Carried("", **read_json(result))
    child_out_of_memory.refuse(code, "the trial of the tokenizer in a GGUF file", tail, log_path)
    return Carried((tail.splitlines() or [f"it ended with {code}"])[-1])


def main(arguments: Sequence[str]) -> int:
    """The child process."""
    child.die_with_parent()
    folder, result = map(Path, arguments)
    with child_out_of_memory.ends_the_process():
        texts, path = read_json(result), folder / _FILE
        gguf_convert.convert_here(folder, path, "f16", "vocabulary", "--vocab-only")
        found = gguf_tensors.Compared()
        if gguf_convert.has_llama_cpp():
            with llama_cpp_model.vocabulary(path) as words:
                found.other_ids = words.others(texts)
        else:
            gguf_tensors.compare_ids(path, texts, found)
        write_json(result, {"other_ids": found.other_ids, "ids_unknown": found.ids_unknown})
    return 0


if __name__ == "__main__":
    child.leave_out(*child.UNUSED)
    sys.exit(main(sys.argv[1:]))
