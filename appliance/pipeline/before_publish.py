"""The GGUF files that `publish.gguf` names: what can be refused before training, and their making before publish.

Imports neither torch nor transformers until it has to make or try something.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from appliance.errors import GateRefused, RecipeError
from appliance.pipeline.job import Job
from appliance.process import console
from appliance.prompt.format import user_message
from appliance.recipe.publish_fields import GgufType
from appliance.rows import csv_file
from appliance.rows.csv_file import Row
from appliance.rundir import exported
from appliance.rundir.directory import RunDir
from appliance.wording import counted

ROWS = 20  # to try a tokenizer with
WITHOUT = "`--set publish.gguf=[]` releases the model without GGUF files"


def due_types(job: Job, todo: Collection[str] | None) -> list[GgufType]:
    """The types that a call which runs the stages `todo` has to make; None: it runs none, and all are judged."""
    recipe = job.resolved.recipe
    if todo is not None and "publish" not in todo:
        return []
    is_new = todo is not None and "merge" in todo
    is_due = is_new or exported.is_due(job.run_dir, recipe.name, recipe.publish.gguf)
    return list(recipe.publish.gguf) if is_due else []


def refuse_unexportable(job: Job, types: Collection[str], work_dir: Path) -> None:
    """Before training: tries whether a GGUF file can carry the tokenizer, with rows of the CSV. Ten seconds or so.

    The base has to be on this disk. Raises RecipeError: the converter does not know the tokenizer or the architecture,
    or a reader of the file would turn prompts into other ids than training.
    """
    if not types:
        return
    from appliance.training import tokenizer_files
    from appliance.weights import gguf_vocabulary

    console.say("trying whether a GGUF file can carry this tokenizer (publish.gguf) …")
    prompt, base_dir = job.prompt, job.base.dir
    asked = [user_message(row.instruction, row.input) for row in _rows(job)]
    texts = [(prompt.text_without_bos(one), prompt.prompt_ids(one)) for one in asked]
    with TemporaryDirectory(dir=work_dir) as scratch, console.prints_to_log():
        folder = Path(scratch)
        tokenizer_files.write(folder, base_dir, prompt)
        shutil.copyfile(base_dir / "config.json", folder / "config.json")
        found = gguf_vocabulary.carried(folder, texts, work_dir / "export.log")
    hint = f"{WITHOUT}; or choose another base model"
    if found.refusal:
        raise RecipeError(f"publish.gguf: the converter refuses this base model: {found.refusal}", hint=hint)
    if found.ids_unknown:
        by_llama_cpp = "install llama.cpp, which can tell (pip install -c constraints.txt '.[llama-cpp]')"
        why = "what a GGUF file would make of the prompts is not known"
        raise RecipeError(f"publish.gguf: {why}: {found.ids_unknown}", hint=f"{by_llama_cpp}; or {hint}")
    if found.other_ids:
        those = counted(len(found.other_ids), "prompt")
        why = "a GGUF file names a kind of tokenizer, and the kind that fits this one best reads otherwise"
        raise RecipeError(
            f"publish.gguf: {those} of {len(texts)} would become other ids than training gives them, such as "
            f"{found.other_ids[0]!r}: {why}",
            hint=hint,
        )


def _rows(job: Job) -> list[Row]:
    """Rows to ask with: from the CSV, or if it was not read, of those that were prepared."""
    path = job.run_dir.stage_dir("prepare") / "test.csv"
    if job.base_source.sample or not path.is_file():
        return job.base_source.sample
    return list(islice(csv_file.iter_canonical(path), ROWS))


def export(job: Job, label: str = "") -> None:
    """The side stage `export`, for the types that are to be released and not there yet. `label`: of its last line.

    Raises as `pipeline/export.py`, `of_run`; the hint then says how to go on without.
    """
    recipe, run_dir = job.resolved.recipe, job.run_dir
    kinds = recipe.publish.gguf
    if not kinds or not (exported.is_due(run_dir, recipe.name, kinds) or _are_damaged(job, run_dir)):
        return
    from appliance.pipeline import export as pipeline_export

    try:
        with console.stage("export"), console.prints_to_log():
            pipeline_export.of_run(run_dir, recipe, kinds, label)
    except GateRefused as error:
        error.hint = f"{error.hint}; {WITHOUT}" if error.hint else WITHOUT
        raise


def _are_damaged(job: Job, run_dir: RunDir) -> bool:
    """Whether a file of a finished export is not what the stage left: it is made again, instead of being refused."""
    recipe, record = job.resolved.recipe, run_dir.record(exported.STAGE)
    assert record is not None  # else it is due
    wanted = {name for kind in recipe.publish.gguf for name in exported.names(recipe.name, kind)}
    outputs = {name: output for name, output in record.outputs.items() if name in wanted}
    return bool(run_dir.faults(exported.STAGE, replace(record, outputs=outputs)))
