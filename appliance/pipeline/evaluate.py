"""Base against tuned on the untouched test rows: the same questions, greedy, one model in memory.

The tuned model is asked as it was trained, the base in every way that suits it (evaluation/base_prompts.py): the
verdict compares with its best answers. Losses, and what the gates and the proof need, are those under our prompt.
An adapter is switched off and on in one loaded model; after full fine-tuning, the base and the tuned model are loaded
one after the other. Test rows are answered greedily unless evaluate.sampling.scored says otherwise; extra prompts,
which are shown but not scored, as evaluate.sampling says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from appliance.base_model.base import Base
from appliance.engines import decoding, memory, rows_by_memory
from appliance.engines.engine import Engine
from appliance.engines.rows_at_once import RowsAtOnce
from appliance.evaluation import (
    base_prompts,
    cautions,
    earlier_run,
    extra_questions,
    facts,
    generate,
    other_model,
    predictions,
    scores,
)
from appliance.evaluation.class_verdict import ClassComparison
from appliance.evaluation.generate import Answer
from appliance.evaluation.loss import LOSS_ROWS_AT_ONCE, mean_loss
from appliance.evaluation.span_verdict import SpanComparison
from appliance.evaluation.verdict import Comparison, compare, stop_rates
from appliance.findings import Caution
from appliance.machine import device as machine_device
from appliance.machine.device import Device
from appliance.pipeline import evaluate_classes, evaluate_spans, test_rows
from appliance.pipeline.models_asked import each_model
from appliance.process import console, files
from appliance.prompt import format as prompt_format
from appliance.prompt.encoding import Encoding
from appliance.recipe.fields import EvaluateSection, ModelSection
from appliance.release import gates
from appliance.rows import csv_file
from appliance.rundir import results
from appliance.tasks.extract import Extract
from appliance.tasks.task import Task
from appliance.training import encoded_rows


@dataclass(frozen=True)
class _Asked:
    """What both models are asked. Rooms in tokens: what an answer may have at most."""

    prompt: prompt_format.Prompt
    rows: Sequence[csv_file.Row]
    rows_of_test: int  # all of them
    encoded: Sequence[prompt_format.Encoded]  # `rows` with their wanted answers, as long as training takes them
    answer_tokens: Sequence[int]  # of the whole wanted answers, EOS included
    ours: base_prompts.Way  # `rows` in the tuned model's prompt
    of_base: base_prompts.Ways
    extra: Sequence[extra_questions.Question]
    extra_prompts: Sequence[Sequence[int]]  # ids
    room_of_extra: int
    val_rows: Sequence[prompt_format.Encoded]  # those that training was evaluated on
    others: Sequence[str] | None  # another model's answers to `rows`
    task: Task
    is_old: Sequence[bool]  # whether each of `rows` tested the earlier run
    continued: str | None  # the name of the earlier run; None if this one continues no other

    @property
    def cut_rows(self) -> int:
        """How many wanted answers are longer than training takes them."""
        pairs = zip(self.encoded, self.answer_tokens, strict=True)
        return sum(len(one) - one.prompt_tokens < tokens for one, tokens in pairs)


@dataclass
class _Seen:
    """What the models answered: `base`, `tuned`, and `earlier` if the run continues another. Losses in nats per trained
    token.
    """

    bases: dict[str, list[Answer]] = field(default_factory=dict)  # the base's answers, by the way in which it was asked
    tuned: list[Answer] = field(default_factory=list)
    earlier: list[Answer] = field(default_factory=list)
    answers_to_extra: dict[str, list[str]] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    val_loss: dict[str, Any] = field(default_factory=dict)  # of the tuned model: `again`, and how it was computed
    in_losses: RowsAtOnce = field(default_factory=lambda: RowsAtOnce(LOSS_ROWS_AT_ONCE, "losses"))
    in_answers: RowsAtOnce = field(default_factory=lambda: RowsAtOnce(generate.ROWS_AT_ONCE, "answers"))


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
    task: Task,
) -> Comparison | ClassComparison | SpanComparison:
    """Writes metrics.json, measures.json (for the gates), predictions.csv, proof_rows.json and extra_answers.csv.

    Args:
        engine: loads the models; they answer on `device`.
        base: the base model, complete on this disk.
        model, evaluate: sections of the recipe.
        prompt_name: the recipe's `prompt`.
        seed: which test rows are chosen, and what is drawn where answers are sampled.
        prepare_dir: the prepared rows.
        trained_dir: the adapter or the model that training left; fit.json is beside it.
        stage_dir: what is written.
        task: the kind of model, and how a row meets it.

    Raises DataError: the user's questions or the other model's answers cannot be read, before anything is loaded.
    """
    if not task.writes:
        dirs = (prepare_dir, trained_dir, stage_dir)
        if isinstance(task, Extract):
            return evaluate_spans.run(engine, base.dir, model, evaluate, prompt_name, seed, *dirs, task)
        return evaluate_classes.run(engine, base.dir, model, evaluate, prompt_name, seed, *dirs, task)
    fit = files.read_json(trained_dir.parent / "fit.json")
    asked = _questions(evaluate, base, fit, prompt_name, seed, prepare_dir, trained_dir, task)
    seen = _Seen()

    def ask(who: str, loaded: Any) -> None:
        if who == "base":  # with the model loaded, what is free is what rows may take
            _take_what_fits(seen, base, device, asked, loaded.dtype.itemsize)
        _ask(who, loaded, engine, asked, evaluate, seed, seen)

    each_model(engine, base, model, trained_dir, results.earlier_adapter(prepare_dir), ask)
    files.write_json(stage_dir / "proof_rows.json", _proof_rows(asked, seen))
    files.write_json(stage_dir / gates.MEASURES, _measures(asked, seen, fit, in_4bit=model.load_in_4bit))
    groups_of = results.read_groups(prepare_dir / results.TEST_GROUPS)
    groups = [groups_of[row.line] for row in asked.rows]
    wanted = [row.output for row in asked.rows]
    unit = scores.f1_unit(wanted)
    best = base_prompts.best(seen.bases, wanted, evaluate.primary)
    answers = {"base": seen.bases[best], "tuned": seen.tuned}
    comparison, row_scores = compare(asked.rows, answers, seen.losses, groups, evaluate.primary)
    bases = base_prompts.scored(seen.bases, wanted, seen.losses["base"])
    comparison = replace(comparison, base_asked=best, bases=bases, cut_rows=asked.cut_rows, **asked.of_base.as_json())
    comparison = replace(comparison, cautions=_cautions(asked, seen, comparison, trained_dir.parent))
    if asked.continued is not None:
        given, loss = answers | {"earlier": seen.earlier}, seen.losses["earlier"]
        comparison = earlier_run.beside(comparison, asked.rows, asked.is_old, given, groups, asked.continued, loss)
    figures = asdict(comparison) | {"rows_of_test": asked.rows_of_test}
    if comparison.earlier is None:  # metrics.json has the key only if there is something to say
        del figures["earlier"]
    if asked.others is not None:
        name, ours = Path(str(evaluate.other_answers)).stem, row_scores["tuned"]
        compared = other_model.score(name, wanted, asked.others, ours, groups, unit=unit, primary=evaluate.primary)
        figures["other"] = compared.as_json()
    more = {way: given for way, given in seen.bases.items() if way != best}
    beside = predictions.columns(asked.others, more, seen.earlier, asked.is_old)
    predictions.write(stage_dir / results.PREDICTIONS, asked.rows, answers, row_scores, unit, beside)
    if asked.extra:
        extra = seen.answers_to_extra
        extra_questions.write(stage_dir / results.EXTRA_ANSWERS, asked.extra, extra["base"], extra["tuned"])
    files.write_json(stage_dir / results.COMPARISON, figures)
    return comparison


def _questions(
    evaluate: EvaluateSection,
    base: Base,
    fit: Mapping[str, Any],
    prompt_name: str,
    seed: int,
    prepare_dir: Path,
    trained_dir: Path,
    task: Task,
) -> _Asked:
    """Everything that is asked, before a model is loaded. `fit`: train/fit.json. Raises DataError, RecipeError."""
    tokenizer = AutoTokenizer.from_pretrained(str(trained_dir), local_files_only=True, trust_remote_code=False)
    prompt = prompt_format.from_transformers(prompt_name, tokenizer)
    every = csv_file.read_canonical(prepare_dir / "test.csv")
    taken = results.read_taken(prepare_dir)
    rows = test_rows.chosen(every, taken, evaluate.max_rows, seed)
    if evaluate.primary == "facts_right":
        facts.refuse_without(row.output for row in rows)
    extra = extra_questions.collect(evaluate.extra_prompts, prepare_dir / "train.csv", evaluate.train_questions, seed)
    others = other_model.read(Path(evaluate.other_answers), rows) if evaluate.other_answers else None
    of_extra = [prompt.prompt_ids(prompt_format.user_message(one.instruction, one.input)) for one in extra]
    encoding, lines = Encoding(**fit["encoding"]), _evaluated(fit)["lines"]
    val_rows, _ = encoded_rows.read(prompt, prepare_dir / "val.csv", encoding, only=lines, task=task)
    test_csv = prepare_dir / "test.csv"
    whole = list(encoded_rows.uncut(prompt, test_csv, loss_on="answer", only=[row.line for row in rows]))
    of_rows = [row.input_ids[: row.prompt_tokens] for _, row in whole]
    room = test_rows.room(base.max_positions, of_rows, evaluate.max_new_tokens)
    ours = base_prompts.Way(base_prompts.PROMPT, prompt, of_rows, room)
    return _Asked(
        prompt=prompt,
        rows=rows,
        rows_of_test=len(every),
        encoded=[encoded_rows.fitting(prompt, test_csv, encoding, line, row, task) for line, row in whole],
        answer_tokens=[len(row) - row.prompt_tokens for _, row in whole],
        ours=ours,
        of_base=base_prompts.ways(
            evaluate.base_prompts,
            ours,
            rows,
            base_dir=base.dir,
            positions=base.max_positions,
            train_csv=prepare_dir / "train.csv",
            longest_row=encoding.max_seq_length,
            seed=seed,
        ),
        extra=extra,
        extra_prompts=of_extra,
        room_of_extra=test_rows.room(base.max_positions, of_extra, evaluate.max_new_tokens),
        val_rows=val_rows,
        others=others,
        task=task,
        is_old=[row.line in taken for row in rows],
        continued=next((line["run"] for line in taken.values()), None),
    )


def _evaluated(fit: Mapping[str, Any]) -> dict[str, Any]:
    """Which val rows training was evaluated on; a training before there was a choice took all of them."""
    return dict(fit.get("evaluation", {"lines": None}))


def _ask(
    who: str, loaded: Any, engine: Engine, asked: _Asked, evaluate: EvaluateSection, seed: int, seen: _Seen
) -> None:
    """One model's losses and answers, into `seen`."""
    sampling = decoding.from_recipe(evaluate.sampling, seed=seed)
    pad, task = asked.prompt.pad_token_id, asked.task
    ways = asked.of_base.asked if who == "base" else (asked.ours,)
    extra = () if who == "earlier" else asked.extra_prompts
    with console.Steps(f"answers of the {who} model", len(ways) * len(asked.rows) + len(extra)) as bar:
        seen.losses[who] = mean_loss(engine, loaded, asked.encoded, pad, seen.in_losses, bar.between, task=task)
        if who == "tuned":  # its adapter, or all of it, has just come from disk: as good as the best?
            again = mean_loss(engine, loaded, asked.val_rows, pad, seen.in_losses, bar.between, task=task)
            seen.val_loss["again"] = again
            seen.val_loss["compute_dtype"] = str(loaded.dtype).removeprefix("torch.")
        answer = partial(
            generate.answer,
            loaded,
            halts=who == "base",  # the tuned model's ids, to the last one, are what merge proves
            at_once=seen.in_answers,
            on_progress=bar.advance,
            task=task,
        )
        scored = decoding.scored(evaluate.sampling, seed=seed)
        for way in ways:
            stop = [*evaluate.stop, *way.stop]
            given = answer(way.prompt, way.prompts, stop=stop, max_new_tokens=way.room, sampling=scored)
            if who == "base":
                seen.bases[way.name] = given
            elif who == "tuned":
                seen.tuned = given
            else:
                seen.earlier = given
        to_extra = answer(
            asked.prompt, extra, stop=evaluate.stop, max_new_tokens=asked.room_of_extra, sampling=sampling
        )
        seen.answers_to_extra[who] = [one.text for one in to_extra]


def _proof_rows(asked: _Asked, seen: _Seen) -> list[dict[str, Any]]:
    """What merge proves its result on: held-out prompts with the tuned model's answers."""
    pairs = zip(asked.ours.prompts, seen.tuned, strict=True)
    return [{"input_ids": [*question, *one.ids], "prompt_tokens": len(question)} for question, one in pairs]


def _measures(asked: _Asked, seen: _Seen, fit: Mapping[str, Any], *, in_4bit: bool) -> dict[str, Any]:
    """What the gates judge: how often answers stop by themselves, and the val loss, computed again."""
    evaluated = _evaluated(fit)
    val_loss = {"best": fit["best_val_loss"], "in_4bit": in_4bit, **seen.val_loss}
    val_loss |= {key: evaluated[key] for key in ("rows", "of") if key in evaluated}
    same_prompt = {"base": seen.bases.get(base_prompts.PROMPT), "tuned": seen.tuned}
    return {
        "stops": stop_rates(_fits(asked), same_prompt),
        "val_loss": val_loss,
        "out_of_memory": [*seen.in_losses.notes, *seen.in_answers.notes],
    }


def _fits(asked: _Asked) -> list[bool]:
    """Whether each row's wanted answer, EOS included, fits into what an answer may have."""
    return [tokens <= asked.ours.room for tokens in asked.answer_tokens]


def _cautions(asked: _Asked, seen: _Seen, comparison: Comparison, train_dir: Path) -> tuple[Caution, ...]:
    """What has to stand beside the verdict. `train_dir`: where training left its losses."""
    metrics, wanted = train_dir / "metrics.jsonl", [row.output for row in asked.rows]
    lines = results.read_metrics(metrics) if metrics.is_file() else []
    return cautions.found_in(
        cautions.Judged(
            lines=[row.line for row in asked.rows],
            wanted=wanted,
            got=[one.text for one in seen.tuned],
            stopped=[one.stopped for one in seen.tuned],
            fits=_fits(asked),
            unit=scores.f1_unit(wanted),
            scores=comparison.tuned,
            verdict=comparison.verdict,
            continued=asked.continued,
            val_losses=[(line["step"], line["val_loss"]) for line in lines if "val_loss" in line],
        )
    )


def _take_what_fits(seen: _Seen, base: Base, device: Device, asked: _Asked, number_bytes: int) -> None:
    """Rows that are computed together, by the longest of them: on a GPU as many as its memory holds; a CPU gains little
    from more than the defaults, and takes fewer if it must. For an unknown architecture the defaults stay.
    """
    shape, ways = memory.shape_of(base.config), (asked.ours, *asked.of_base.asked)
    if shape is None:
        return
    limit = rows_by_memory.usable(machine_device.room_bytes(device), device.memory_bytes)
    answers = rows_by_memory.of_answers(
        shape,
        prompt_tokens=max([*(way.longest for way in ways), *map(len, asked.extra_prompts)]),
        answer_tokens=max(asked.ours.room, asked.room_of_extra),
        number_bytes=number_bytes,
        limit=limit,
    )
    longest = max(map(len, (*asked.encoded, *asked.val_rows)))
    losses = rows_by_memory.of_a_loss(shape, tokens=longest, number_bytes=number_bytes, limit=limit)
    for at_once, rows in ((seen.in_answers, answers), (seen.in_losses, losses)):
        at_once.rows = min(rows, at_once.rows) if device.kind == "cpu" else rows
