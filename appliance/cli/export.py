"""`appliance export RUN_DIR --gguf TYPE`: files for llama.cpp and Ollama. No logic."""

from __future__ import annotations

from appliance.cli.options import GgufOption, RunDirArgument


def export(run_dir: RunDirArgument, gguf: GgufOption) -> None:
    """Write the proven model as GGUF files, for llama.cpp and Ollama. Each is proven.

    Every tensor is read back and compared with the merged model. llama.cpp, if installed, answers the test rows.

    appliance export runs/shop --gguf q8_0

    appliance export runs/shop --gguf q8_0 --gguf q4_k_m
    """
    from appliance.rundir import find as rundir_find

    rundir_find.require_run(run_dir)
    from appliance.pipeline import export as pipeline_export
    from appliance.process import console

    for path in pipeline_export.by_name(run_dir, gguf):
        console.result(f"GGUF           {path}")
        console.result(f"Ollama         ollama create my-model -f {path.with_suffix('.Modelfile')}")
        console.result(f"llama.cpp      llama-cli -m {path} --jinja --temp 0 -cnv")
