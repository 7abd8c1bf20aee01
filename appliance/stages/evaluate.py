"""Base against tuned on the untouched test rows: the same prompts, greedy, one model in memory.

With an adapter it is one model, the adapter off and on; after full fine-tuning two models, one after the other: the
base's answers are those of before the training. Test rows are answered greedily unless evaluate.sampling.scored says
otherwise; extra prompts, which are shown and not scored, as evaluate.sampling says.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from appliance import (
    batches,
    console,
    extra_answers,
    gates,
    generation,
    machine,
    memory,
    metrics,
    other_model,
    prompts,
    rundir,
    table,
)
from appliance.engines import Engine
from appliance.errors import DataError
from appliance.fitting import RowsAtOnce
from appliance.generation import GREEDY, Answer, Sampling
from appliance.hub import Base
from appliance.machine import Device
from appliance.recipe import EvaluateSection, ModelSection
from appliance.shards import is_adapter

LOSS_ROWS_AT_ONCE = 4
PREDICTION_COLUMNS = ("row", "question", "wanted", "base", "tuned", "verdict")


@dataclass(frozen=True)
class Comparison:
    """evaluate/metrics.json. Fractions 0-1; losses in nats per answer token; interval of tuned - base, 95 %."""

    rows: int
    base: metrics.Scores
    tuned: metrics.Scores
    f1_unit: str
    primary: str
    wins: int
    losses: int
    interval: tuple[float, float]
    verdict: str


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
    prompt = prompts.from_transformers(prompt_name, tokenizer)
    test_rows = table.read_canonical(prepare_dir / "test.csv")
    rows = _chosen(test_rows, evaluate.max_rows, seed)
    extra = extra_answers.collect(evaluate.extra_prompts, prepare_dir / "train.csv", evaluate.train_questions, seed)
    others = other_model.read(Path(evaluate.other_answers), rows) if evaluate.other_answers else None
    questions, extra_questions = (
        [prompt.prompt_ids(prompts.user_message(one.instruction, one.input)) for one in asked]
        for asked in (rows, extra)
    )
    room = _room(base.max_positions, questions, evaluate.max_new_tokens)
    room_of_extra = _room(base.max_positions, extra_questions, evaluate.max_new_tokens)
    chosen = evaluate.sampling
    sampling = Sampling(**chosen.model_dump(exclude={"scored"}), seed=seed)
    encoded = [prompt.encode(row.instruction, row.input, row.output) for row in rows]
    fit = rundir.read_json(trained_dir.parent / "fit.json")
    evaluated = fit.get("evaluation", {"lines": None})  # a training before there was a choice took all val rows
    val_rows = _val_rows(prompt, prepare_dir / "val.csv", evaluated["lines"], **fit["encoding"])
    answers: dict[str, list[Answer]] = {}
    answers_to_extra: dict[str, list[str]] = {}
    losses: dict[str, float] = {}
    val_loss: dict[str, Any] = {"best": fit["best_val_loss"], "in_4bit": model.load_in_4bit}
    val_loss |= {key: evaluated[key] for key in ("rows", "of") if key in evaluated}

    in_losses, in_answers = RowsAtOnce(LOSS_ROWS_AT_ONCE, "losses"), RowsAtOnce(generation.ROWS_AT_ONCE, "answers")

    def look(who: str, loaded: Any) -> None:
        if not answers:  # with the model loaded, what is free is what answers may take
            longest = max(map(len, [*questions, *extra_questions]))
            in_answers.rows = _answers_at_once(base, device, longest, max(room, room_of_extra), loaded.dtype.itemsize)
        with console.Steps(f"answers of the {who} model", len(rows) + len(extra)) as bar:
            losses[who] = mean_loss(engine, loaded, encoded, prompt.pad_token_id, in_losses)
            if who == "tuned":  # the model that has just come from disk: as good as the best one in training?
                val_loss["again"] = mean_loss(engine, loaded, val_rows, prompt.pad_token_id, in_losses)
                val_loss["compute_dtype"] = str(loaded.dtype).removeprefix("torch.")
            answers[who] = generation.answer(
                loaded,
                prompt,
                questions,
                max_new_tokens=room,
                stop=evaluate.stop,
                sampling=sampling if chosen.scored else GREEDY,
                at_once=in_answers,
                on_progress=bar.advance,
            )
            given = generation.answer(
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

    rundir.write_json(
        stage_dir / "proof_rows.json",  # what merge proves itself on: held-out prompts with the tuned answers
        [
            {"input_ids": [*question, *one.ids], "prompt_tokens": len(question)}
            for question, one in zip(questions, answers["tuned"], strict=True)
        ],
    )
    stops = stop_rates([len(one) - one.prompt_tokens for one in encoded], room, answers)
    measures = {"stops": stops, "val_loss": val_loss, "out_of_memory": [*in_losses.notes, *in_answers.notes]}
    rundir.write_json(stage_dir / gates.MEASURES, measures)
    groups_of = _groups(prepare_dir / "test_groups.csv")
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
            unit=metrics.f1_unit([row.output for row in rows]),
            primary=evaluate.primary,
        ).as_json()
    _write_predictions(stage_dir / "predictions.csv", rows, answers, row_scores, others)
    if extra:
        extra_answers.write(stage_dir / extra_answers.FILE, extra, answers_to_extra["base"], answers_to_extra["tuned"])
    rundir.write_json(stage_dir / "metrics.json", figures)
    return comparison


def compare(
    rows: Sequence[table.Row],
    answers: dict[str, list[Answer]],
    losses: dict[str, float],
    groups: Sequence[str],
    primary: metrics.Metric,
) -> tuple[Comparison, dict[str, list[float]]]:
    """The scores, and the primary metric of every row under "base" and "tuned"."""
    wanted = [row.output for row in rows]
    unit = metrics.f1_unit(wanted)
    texts = {who: [a.text for a in given] for who, given in answers.items()}
    scores = {
        who: metrics.score(wanted, texts[who], unit=unit, loss=losses[who], stopped=[a.stopped for a in given])
        for who, given in answers.items()
    }
    by_row = {who: metrics.per_row(primary, wanted, given, unit) for who, given in texts.items()}
    interval = metrics.paired_bootstrap(by_row["base"], by_row["tuned"], groups)
    wins, losses_count = metrics.wins_losses(by_row["base"], by_row["tuned"])
    comparison = Comparison(
        rows=len(rows),
        base=scores["base"],
        tuned=scores["tuned"],
        f1_unit=unit,
        primary=primary,
        wins=wins,
        losses=losses_count,
        interval=interval,
        verdict=metrics.verdict(interval),
    )
    return comparison, by_row


def mean_loss(
    engine: Engine, model: Any, rows: Sequence[prompts.Encoded], pad_token_id: int, at_once: RowsAtOnce
) -> float:
    """Mean negative log-likelihood in nats over all trained tokens of `rows` (answers and EOS).

    Raises RuntimeError: there is no memory for a single row.
    """
    sums: list[torch.Tensor] = []  # on the device: each look at it makes it wait

    def add(rows: Sequence[prompts.Encoded]) -> None:
        part = [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]
        batch = batches.collate(part, pad_token_id=pad_token_id)
        with torch.inference_mode():
            sums.append(engine.summed_loss(model, {name: value.to(model.device) for name, value in batch.items()}))

    at_once.each(sorted(rows, key=len, reverse=True), add)
    tokens = sum(label != batches.IGNORED for row in rows for label in row.labels[1:])
    return float(torch.stack(sums).double().sum()) / tokens


def stop_rates(
    answer_tokens: Sequence[int], max_new_tokens: int, answers: dict[str, list[Answer]]
) -> dict[str, float | int | None]:
    """Shares of answers that stopped, of the rows whose wanted answer (with EOS, in tokens) had room to stop.

    A row that needs more than `max_new_tokens` cannot stop in time even when it is answered perfectly.
    """
    fits = [i for i, tokens in enumerate(answer_tokens) if tokens <= max_new_tokens]
    rates = {who: sum(given[i].stopped for i in fits) / len(fits) if fits else None for who, given in answers.items()}
    return {"rows_that_fit": len(fits), **rates}


def _val_rows(
    prompt: prompts.Prompt,
    path: Path,
    lines: Collection[int] | None,
    *,
    loss_on: str,
    max_seq_length: int,
    cut_long_rows: bool,
) -> list[prompts.Encoded]:
    """The val rows as training encoded them: those of `lines`, or all."""
    wanted = None if lines is None else set(lines)
    used = (row for row in table.iter_canonical(path) if wanted is None or row.line in wanted)
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
        return generation.ROWS_AT_ONCE
    return memory.answers_at_once(
        shape,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        number_bytes=number_bytes,
        room=machine.room_bytes(device),
    )


def _chosen(rows: list[table.Row], max_rows: int, seed: int) -> list[table.Row]:
    """All rows, or a random `max_rows` of them in the file's order: the first ones may all be alike."""
    if len(rows) <= max_rows:
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), max_rows))]


def _groups(path: Path) -> dict[int, str]:
    with path.open(encoding="utf-8", newline="") as handle:
        return {int(line["row"]): line["group"] for line in csv.DictReader(handle)}


def _write_predictions(
    path: Path,
    rows: Sequence[table.Row],
    answers: dict[str, list[Answer]],
    scores: dict[str, list[float]],
    others: Sequence[str] | None = None,
) -> None:
    columns = (*PREDICTION_COLUMNS, "other") if others is not None else PREDICTION_COLUMNS
    with rundir.atomic_file(path) as temporary, table.csv_writer(temporary, columns) as write:
        for i, row in enumerate(rows):
            before, after = scores["base"][i], scores["tuned"][i]
            verdict = "win" if after > before else "loss" if after < before else "tie"
            question = extra_answers.shown(row.instruction, row.input)
            more = () if others is None else (others[i],)
            write((row.line, question, row.output, answers["base"][i].text, answers["tuned"][i].text, verdict, *more))
