"""Base against tuned on the untouched test rows: the same prompts, greedy, one model in memory.

With an adapter it is one model, the adapter off and on; after full fine-tuning two models, one after the other: the
base's answers are those of before the training. Test rows are answered greedily unless evaluate.sampling.scored says
otherwise; extra prompts, which are shown and not scored, as evaluate.sampling says.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from appliance.base_model.base import Base
from appliance.engines import memory
from appliance.engines.decoding import GREEDY, from_recipe
from appliance.engines.engine import Engine
from appliance.engines.rows_at_once import RowsAtOnce
from appliance.errors import DataError
from appliance.evaluation import extra_questions as evaluation_extra_questions
from appliance.evaluation import generate, other_model, scores
from appliance.evaluation.generate import Answer
from appliance.evaluation.loss import LOSS_ROWS_AT_ONCE, mean_loss
from appliance.evaluation.verdict import Comparison, compare, stop_rates
from appliance.machine import device as machine_device
from appliance.machine.device import Device
from appliance.process import console, files
from appliance.prompt import format as prompt_format
from appliance.recipe.fields import EvaluateSection, ModelSection
from appliance.release import gates
from appliance.rows import csv_file
from appliance.rundir import results
from appliance.weights.shards import is_adapter


def run(
    *,
    engine: Engine,
    device: Device,
    base: Base,
    model: ModelSection,
    evaluate: EvaluateSection,
    prompt_name: str,
    seed: int,
    prepare_dir: Path,
    trained_dir: Path,
    stage_dir: Path,
) -> Comparison:
    """Writes metrics.json, measures.json (for the gates), predictions.csv, proof_rows.json and extra_answers.csv.

    Raises DataError: the user's questions or the other model's answers cannot be read, before anything is loaded.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(trained_dir), local_files_only=True, trust_remote_code=False)
    prompt = prompt_format.from_transformers(prompt_name, tokenizer)
    test_rows = csv_file.read_canonical(prepare_dir / "test.csv")
    rows = _chosen(test_rows, evaluate.max_rows, seed)
    extra = evaluation_extra_questions.collect(
        evaluate.extra_prompts, prepare_dir / "train.csv", evaluate.train_questions, seed
    )
    others = other_model.read(Path(evaluate.other_answers), rows) if evaluate.other_answers else None
    questions, extra_questions = (
        [prompt.prompt_ids(prompt_format.user_message(one.instruction, one.input)) for one in asked]
        for asked in (rows, extra)
    )
    room = _room(base.max_positions, questions, evaluate.max_new_tokens)
    room_of_extra = _room(base.max_positions, extra_questions, evaluate.max_new_tokens)
    chosen = evaluate.sampling
    sampling = from_recipe(chosen, seed=seed)
    encoded = [prompt.encode(row.instruction, row.input, row.output) for row in rows]
    fit = files.read_json(trained_dir.parent / "fit.json")
    evaluated = fit.get("evaluation", {"lines": None})  # a training before there was a choice took all val rows
    val_rows = _val_rows(prompt, prepare_dir / "val.csv", evaluated["lines"], **fit["encoding"])
    answers: dict[str, list[Answer]] = {}
    answers_to_extra: dict[str, list[str]] = {}
    losses: dict[str, float] = {}
    val_loss: dict[str, Any] = {"best": fit["best_val_loss"], "in_4bit": model.load_in_4bit}
    val_loss |= {key: evaluated[key] for key in ("rows", "of") if key in evaluated}

    in_losses, in_answers = RowsAtOnce(LOSS_ROWS_AT_ONCE, "losses"), RowsAtOnce(generate.ROWS_AT_ONCE, "answers")

    def look(who: str, loaded: Any) -> None:
        if not answers:  # with the model loaded, what is free is what answers may take
            longest = max(map(len, [*questions, *extra_questions]))
            in_answers.rows = _answers_at_once(base, device, longest, max(room, room_of_extra), loaded.dtype.itemsize)
        with console.Steps(f"answers of the {who} model", len(rows) + len(extra)) as bar:
            losses[who] = mean_loss(engine, loaded, encoded, prompt.pad_token_id, in_losses)
            if who == "tuned":  # the model that has just come from disk: as good as the best one in training?
                val_loss["again"] = mean_loss(engine, loaded, val_rows, prompt.pad_token_id, in_losses)
                val_loss["compute_dtype"] = str(loaded.dtype).removeprefix("torch.")
            answers[who] = generate.answer(
                loaded,
                prompt,
                questions,
                max_new_tokens=room,
                stop=evaluate.stop,
                sampling=sampling if chosen.scored else GREEDY,
                at_once=in_answers,
                on_progress=bar.advance,
            )
            given = generate.answer(
                loaded,
                prompt,
                extra_questions,
                max_new_tokens=room_of_extra,
                stop=evaluate.stop,
                sampling=sampling,
                at_once=in_answers,
                on_progress=bar.advance,
            )
            answers_to_extra[who] = [one.text for one in given]

    if is_adapter(trained_dir):
        tuned, _ = engine.load_for_inference(base.dir, model, trained_dir)
        with tuned.disable_adapter():
            look("base", tuned)
        look("tuned", tuned)
        del tuned
    else:
        for who, folder in (("base", base.dir), ("tuned", trained_dir)):
            look(who, engine.load_for_inference(folder, model, None)[0])
            engine.release()
    engine.release()

    files.write_json(
        stage_dir / "proof_rows.json",  # what merge proves itself on: held-out prompts with the tuned answers
        [
            {"input_ids": [*question, *one.ids], "prompt_tokens": len(question)}
            for question, one in zip(questions, answers["tuned"], strict=True)
        ],
    )
    stops = stop_rates([len(one) - one.prompt_tokens for one in encoded], room, answers)
    measures = {"stops": stops, "val_loss": val_loss, "out_of_memory": [*in_losses.notes, *in_answers.notes]}
    files.write_json(stage_dir / gates.MEASURES, measures)
    groups_of = results.read_groups(prepare_dir / results.TEST_GROUPS)
    groups = [groups_of[row.line] for row in rows]
    comparison, row_scores = compare(rows, answers, losses, groups, evaluate.primary)
    figures = asdict(comparison) | {"rows_of_test": len(test_rows)}
    if others is not None:
        figures["other"] = other_model.score(
            Path(str(evaluate.other_answers)).stem,
            [row.output for row in rows],
            others,
            row_scores["tuned"],
            groups,
            unit=scores.f1_unit([row.output for row in rows]),
            primary=evaluate.primary,
        ).as_json()
    _write_predictions(stage_dir / results.PREDICTIONS, rows, answers, row_scores, others)
    if extra:
        evaluation_extra_questions.write(
            stage_dir / results.EXTRA_ANSWERS, extra, answers_to_extra["base"], answers_to_extra["tuned"]
        )
    files.write_json(stage_dir / results.COMPARISON, figures)
    return comparison


def _val_rows(
    prompt: prompt_format.Prompt,
    path: Path,
    lines: Collection[int] | None,
    *,
    loss_on: str,
    max_seq_length: int,
    cut_long_rows: bool,
) -> list[prompt_format.Encoded]:
    """The val rows as training encoded them: those of `lines`, or all."""
    wanted = None if lines is None else set(lines)
    used = (row for row in csv_file.iter_canonical(path) if wanted is None or row.line in wanted)
    rows = [prompt.encode(r.instruction, r.input, r.output, loss_on=loss_on) for r in used]
    return [prompt.cut(row, max_seq_length) for row in rows] if cut_long_rows else rows


def summarise(seen: Comparison) -> str:
    """One line for people."""
    before, after = getattr(seen.base, seen.primary), getattr(seen.tuned, seen.primary)
    low, high = seen.interval
    return (
        f"{seen.primary} {before:.1%} -> {after:.1%} on {seen.rows} test rows "
        f"(difference {low:+.1%} to {high:+.1%}): {seen.verdict}; "
        f"exact match {seen.base.exact_match:.1%} -> {seen.tuned.exact_match:.1%}"
    )


def _room(positions: int, questions: Sequence[Sequence[int]], wanted_tokens: int) -> int:
    """Tokens that the answers may have: no more than the base has positions for, which in GPT-2 is a hard end.

    Raises DataError: a question fills them all.
    """
    longest = max(map(len, questions), default=0)
    if longest >= positions:
        raise DataError(
            f"a question has {longest} tokens with its prompt; the base has {positions} positions, the answer included",
            hint="shorten it: a row of the CSV, or a line of evaluate.extra_prompts",
        )
    return min(wanted_tokens, positions - longest)


def _answers_at_once(base: Base, device: Device, prompt_tokens: int, answer_tokens: int, number_bytes: int) -> int:
    """Rows that are answered together: on a card as many as its memory holds."""
    shape = memory.shape_of(base.config)
    if device.kind == "cpu" or shape is None:
        return generate.ROWS_AT_ONCE
    return memory.answers_at_once(
        shape,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        number_bytes=number_bytes,
        room=machine_device.room_bytes(device),
    )


def _chosen(rows: list[csv_file.Row], max_rows: int, seed: int) -> list[csv_file.Row]:
    """All rows, or a random `max_rows` of them in the file's order: the first ones may all be alike."""
    if len(rows) <= max_rows:
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), max_rows))]


def _write_predictions(
    path: Path,
    rows: Sequence[csv_file.Row],
    answers: dict[str, list[Answer]],
    scores: dict[str, list[float]],
    others: Sequence[str] | None = None,
) -> None:
    columns = (*results.PREDICTION_COLUMNS, *((results.OTHER_COLUMN,) if others is not None else ()))
    with files.atomic_file(path) as temporary, csv_file.csv_writer(temporary, columns) as write:
        for i, row in enumerate(rows):
            before, after = scores["base"][i], scores["tuned"][i]
            verdict = "win" if after > before else "loss" if after < before else "tie"
            question = evaluation_extra_questions.shown(row.instruction, row.input)
            more = () if others is None else (others[i],)
            write((row.line, question, row.output, answers["base"][i].text, answers["tuned"][i].text, verdict, *more))
