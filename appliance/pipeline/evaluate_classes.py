"""A trained classifier on the untouched test rows, beside the commonest class and a linear model trained on train.

The stage `evaluate` of a task that does not write. The base is not asked: it has no head for these classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from appliance.engines.engine import Engine
from appliance.engines.rows_at_once import RowsAtOnce
from appliance.evaluation import class_baselines, class_verdict, extra_questions, generate, predict_classes
from appliance.evaluation.class_verdict import ClassComparison
from appliance.evaluation.generate import Answer
from appliance.evaluation.loss import LOSS_ROWS_AT_ONCE, mean_loss
from appliance.pipeline import test_rows
from appliance.process import console, files
from appliance.prompt import format as prompt_format
from appliance.prompt.encoding import Encoding
from appliance.recipe.fields import EvaluateSection, ModelSection
from appliance.release import gates
from appliance.rows import csv_file
from appliance.rows.csv_file import Row
from appliance.rundir import results
from appliance.tasks.classify import class_of
from appliance.tasks.task import Task
from appliance.training import encoded_rows
from appliance.weights.shards import is_adapter


def run(
    engine: Engine,
    base_dir: Path,
    model: ModelSection,
    evaluate: EvaluateSection,
    prompt_name: str,
    seed: int,
    prepare_dir: Path,
    trained_dir: Path,
    stage_dir: Path,
    task: Task,
) -> ClassComparison:
    """Writes metrics.json, measures.json (for the gates), predictions.csv and proof_rows.json.

    Args:
        engine: loads the trained model.
        base_dir: the base model, to which an adapter is added.
        model, evaluate: sections of the recipe.
        prompt_name: the recipe's `prompt`.
        seed: which test rows are chosen, and which train rows the linear model learns from if there are many.
        prepare_dir: the prepared rows.
        trained_dir: the adapter or the model that training left; fit.json is beside it.
        stage_dir: what is written.
        task: with its classes.
    """
    fit = files.read_json(trained_dir.parent / "fit.json")
    tokenizer = AutoTokenizer.from_pretrained(str(trained_dir), local_files_only=True, trust_remote_code=False)
    prompt = prompt_format.from_transformers(prompt_name, tokenizer)
    every = csv_file.read_canonical(prepare_dir / "test.csv")
    rows = test_rows.chosen(every, results.read_taken(prepare_dir), evaluate.max_rows, seed)
    encoding, evaluated = Encoding(**fit["encoding"]), dict(fit["evaluation"])
    encoded, _ = encoded_rows.read(
        prompt, prepare_dir / "test.csv", encoding, task=task, only=[row.line for row in rows]
    )
    val_rows, _ = encoded_rows.read(prompt, prepare_dir / "val.csv", encoding, task=task, only=evaluated["lines"])
    questions = [one.input_ids[: one.prompt_tokens] for one in encoded]
    in_losses, in_answers = RowsAtOnce(LOSS_ROWS_AT_ONCE, "losses"), RowsAtOnce(generate.ROWS_AT_ONCE, "answers")
    folders = (base_dir, model, trained_dir) if is_adapter(trained_dir) else (trained_dir, model, None)
    loaded, _ = engine.load_for_inference(*folders)
    pad = prompt.pad_token_id
    with console.Steps("classes that the tuned model gives", len(rows)) as bar:
        loss = mean_loss(engine, loaded, encoded, pad, in_losses, bar.between, task=task)
        again = mean_loss(engine, loaded, val_rows, pad, in_losses, bar.between, task=task)
        answers, likely = predict_classes.predict(
            loaded, questions, task, pad_token_id=pad, at_once=in_answers, on_progress=bar.advance
        )
    val_loss = {"best": fit["best_val_loss"], "in_4bit": False, "again": again}
    val_loss |= {"compute_dtype": str(loaded.dtype).removeprefix("torch."), **_part(evaluated)}
    del loaded
    engine.release()
    notes = [*in_losses.notes, *in_answers.notes]
    proven = [
        {"input_ids": [*asked, *one.ids], "prompt_tokens": len(asked)}
        for asked, one in zip(questions, answers, strict=True)
    ]
    files.write_json(stage_dir / "proof_rows.json", proven)
    files.write_json(stage_dir / gates.MEASURES, {"val_loss": val_loss, "out_of_memory": notes})
    train = csv_file.read_canonical(prepare_dir / "train.csv")
    baselines = _baselines(train, rows, seed)
    wanted = [class_of(row.output) for row in rows]
    groups_of = results.read_groups(prepare_dir / results.TEST_GROUPS)
    frequencies = class_verdict.loss_of_frequencies([class_of(row.output) for row in train], wanted, task.classes)
    comparison = class_verdict.compare(
        wanted,
        [one.text for one in answers],
        baselines,
        classes=task.classes,
        groups=[groups_of[row.line] for row in rows],
        losses={"tuned": loss, class_baselines.MAJORITY: frequencies},
    )
    files.write_json(stage_dir / results.COMPARISON, asdict(comparison) | {"rows_of_test": len(every)})
    _write(stage_dir / results.PREDICTIONS, rows, answers, likely, baselines, comparison.base_asked)
    return comparison


def _part(evaluated: Mapping[str, Any]) -> dict[str, Any]:
    """How many val rows training was evaluated on, of how many."""
    return {key: evaluated[key] for key in ("rows", "of") if key in evaluated}


def _baselines(train: Sequence[Row], rows: Sequence[Row], seed: int) -> dict[str, list[str]]:
    """What each answers to `rows`, the test rows."""
    texts, labels = [_text(row) for row in train], [class_of(row.output) for row in train]
    return {
        class_baselines.LINEAR: class_baselines.linear(texts, labels, [_text(row) for row in rows], seed=seed),
        class_baselines.MAJORITY: class_baselines.majority(labels, len(rows)),
    }


def _text(row: Row) -> str:
    return f"{row.instruction}\n{row.input}" if row.input else row.instruction


def _write(
    path: Path,
    rows: Sequence[Row],
    answers: Sequence[Answer],
    likely: Sequence[float],
    baselines: Mapping[str, Sequence[str]],
    best: str,
) -> None:
    """predictions.csv: `base` is what the better baseline, `best`, answers; `likely`: the tuned model's probability."""
    others = {name: given for name, given in baselines.items() if name != best}
    header = (*results.PREDICTION_COLUMNS, *map(results.BASE_COLUMN.format, others), results.PROBABILITY_COLUMN)
    with files.atomic_file(path) as temporary, csv_file.csv_writer(temporary, header) as add:
        for i, row in enumerate(rows):
            base, tuned = baselines[best][i], answers[i].text
            wanted = class_of(row.output)
            right = (tuned == wanted) - (base == wanted)
            verdict = {1: "win", 0: "tie", -1: "loss"}[right]
            question = extra_questions.shown(row.instruction, row.input)
            cells = (given[i] for given in others.values())
            add((row.line, question, wanted, base, tuned, verdict, *cells, f"{likely[i]:.4f}"))
