"""A model that finds answers in texts, on the untouched test rows, beside the sentence most like the question.

The stage `evaluate` of a task whose answers stand in the rows' inputs. The base is not asked: as a rule
its head is untrained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from appliance.engines.engine import Engine
from appliance.engines.rows_at_once import RowsAtOnce
from appliance.evaluation import (
    extra_questions,
    generate,
    predict_spans,
    scores,
    span_baselines,
    span_scores,
    span_verdict,
)
from appliance.evaluation.loss import LOSS_ROWS_AT_ONCE, mean_loss
from appliance.evaluation.predict_spans import Candidate, Found
from appliance.evaluation.scores import Unit
from appliance.evaluation.span_verdict import SpanComparison
from appliance.pipeline import test_rows
from appliance.process import console, files
from appliance.prompt import format as prompt_format
from appliance.prompt import spans
from appliance.prompt.encoding import Encoding
from appliance.prompt.format import Encoded, Prompt
from appliance.recipe.fields import EvaluateSection, ModelSection
from appliance.release import gates
from appliance.rows import csv_file
from appliance.rows.csv_file import Row
from appliance.rundir import results
from appliance.tasks.extract import Extract, reads_types
from appliance.training import encoded_rows
from appliance.weights.shards import is_adapter


@dataclass(frozen=True)
class _Question:
    """A question about a text.

    `row`: the first that asks it; `places`: the answers of all rows that do, and where they begin; "" is no answer.
    `windows`, and `begins`: which token of the text each of them begins with. `offsets`: the characters of the text
    that its tokens stand for.
    """

    row: Row
    places: Mapping[str, int | None]
    windows: Sequence[Encoded]
    begins: Sequence[int]
    offsets: Sequence[tuple[int, int]]

    @property
    def wanted(self) -> tuple[str, ...]:
        return tuple(self.places)

    def text_of(self, chosen: Candidate | None) -> str:
        if chosen is None:
            return ""
        return spans.text_of(self.row.input, self.offsets, chosen.first, chosen.last)

    def reachable(self, unit: Unit) -> tuple[float, float]:
        """Exact match and F1 of the best answer that whole tokens can give."""
        tokens = [
            spans.tokens_of(self.offsets, begin, begin + len(text))
            for text, begin in self.places.items()
            if begin is not None
        ]
        texts = [self.text_of(Candidate(0.0, *one)) for one in tokens] or [""]
        exact = max(span_scores.best("exact_match", self.wanted, text, unit) for text in texts)
        return exact, max(span_scores.best("f1", self.wanted, text, unit) for text in texts)


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
    task: Extract,
) -> SpanComparison:
    """Writes metrics.json, measures.json (for the gates), predictions.csv, nbest.jsonl and proof_rows.json.

    Args:
        engine: loads the trained model.
        base_dir: the base model, to which an adapter is added.
        model, evaluate: sections of the recipe.
        prompt_name: the recipe's `prompt`.
        seed: which test rows are chosen.
        prepare_dir: the prepared rows.
        trained_dir: the adapter or the model that training left; fit.json is beside it.
        stage_dir: what is written.
        task: with what `prepare` found of the rows.
    """
    fit = files.read_json(trained_dir.parent / "fit.json")
    tokenizer = AutoTokenizer.from_pretrained(str(trained_dir), local_files_only=True, trust_remote_code=False)
    prompt = prompt_format.from_transformers(prompt_name, tokenizer)
    encoding, evaluated = Encoding(**fit["encoding"]), dict(fit["evaluation"])
    every = csv_file.read_canonical(prepare_dir / "test.csv")
    asked = _asked(every, prompt, prepare_dir, encoding, evaluate.max_rows, seed, task)
    val_rows, _ = encoded_rows.read(prompt, prepare_dir / "val.csv", encoding, task=task, only=evaluated["lines"])
    windows = [one for question in asked for one in question.windows]
    in_losses, in_answers = RowsAtOnce(LOSS_ROWS_AT_ONCE, "losses"), RowsAtOnce(generate.ROWS_AT_ONCE, "answers")
    folders = (base_dir, model, trained_dir) if is_adapter(trained_dir) else (trained_dir, model, None)
    loaded, _ = engine.load_for_inference(*folders)
    pad = prompt.pad_token_id
    with console.Steps("windows that the tuned model reads", len(windows)) as bar:
        loss = mean_loss(engine, loaded, windows, pad, in_losses, bar.between, task=task)
        again = mean_loss(engine, loaded, val_rows, pad, in_losses, bar.between, task=task)
        found = predict_spans.predict(
            loaded,
            [question.windows for question in asked],
            [question.begins for question in asked],
            task,
            pad_token_id=pad,
            longest=evaluate.max_new_tokens,
            at_once=in_answers,
            on_progress=bar.advance,
        )
    val_loss = {"best": fit["best_val_loss"], "in_4bit": False, "again": again}
    val_loss |= {"compute_dtype": str(loaded.dtype).removeprefix("torch.")}
    val_loss |= {key: evaluated[key] for key in ("rows", "of") if key in evaluated}
    token_types = reads_types(loaded)
    del loaded
    engine.release()
    notes = [*in_losses.notes, *in_answers.notes]
    files.write_json(stage_dir / "proof_rows.json", [_proven(q, f) for q, f in zip(asked, found, strict=True)])
    files.write_json(stage_dir / gates.MEASURES, {"val_loss": val_loss, "out_of_memory": notes})
    how: dict[str, Any] = {"max_seq_length": encoding.max_seq_length, "stride": task.stride, "windows": len(windows)}
    how |= {"max_answer_tokens": evaluate.max_new_tokens, "token_types": token_types}
    how["threshold"] = evaluate.no_answer_threshold if task.may_abstain else None
    comparison = _judged(asked, found, prepare_dir, stage_dir, evaluate, loss, how)
    files.write_json(stage_dir / results.COMPARISON, asdict(comparison) | {"rows_of_test": len(every)})
    return comparison


def _asked(
    every: Sequence[Row],
    prompt: Prompt,
    prepare_dir: Path,
    encoding: Encoding,
    max_rows: int,
    seed: int,
    task: Extract,
) -> list[_Question]:
    """The questions of the chosen test rows, each once, with the answers of `every` test row that asks the same."""
    wanted: dict[tuple[str, str], dict[str, int | None]] = {}
    for row in every:
        wanted.setdefault((row.instruction, row.input), {}).setdefault(row.output, row.answer_start)
    chosen = test_rows.chosen(every, results.read_taken(prepare_dir), max_rows, seed)
    rows = [*{(row.instruction, row.input): row for row in reversed(chosen)}.values()][::-1]
    lines = [row.line for row in rows]
    encoded, of = encoded_rows.read(prompt, prepare_dir / "test.csv", encoding, task=task, only=lines)
    windows: dict[int, list[Encoded]] = {}
    for line, one in zip(of.lines, encoded, strict=True):
        windows.setdefault(line, []).append(one)
    found = []
    for row in rows:
        read, cut = prompt.read(row.instruction, row.input), windows[row.line]
        step = encoding.max_seq_length - read.head - spans.END - task.stride
        begins = [number * step for number in range(len(cut))]
        found.append(_Question(row, wanted[row.instruction, row.input], cut, begins, read.offsets))
    return found


def _proven(question: _Question, found: Found) -> dict[str, Any]:
    """What merge proves its result on: the window of the answer, with the likeliest begin and end there."""
    one = question.windows[found.window]
    window = one.input_ids[: one.prompt_tokens]
    return {"input_ids": [*window, *found.likeliest], "prompt_tokens": len(window)}


def _judged(
    asked: Sequence[_Question],
    found: Sequence[Found],
    prepare_dir: Path,
    stage_dir: Path,
    evaluate: EvaluateSection,
    loss: float,
    how: dict[str, Any],
) -> SpanComparison:
    """Scores, baselines and the verdict; predictions.csv and nbest.jsonl. `how`: of the answers, for metrics.json."""
    abstains = how["threshold"] is not None
    chosen = [one.answer(may_abstain=abstains, threshold=evaluate.no_answer_threshold) for one in found]
    answers = [question.text_of(one) for question, one in zip(asked, chosen, strict=True)]
    likely = [f.probability(c, may_abstain=abstains) for f, c in zip(found, chosen, strict=True)]
    unit = scores.f1_unit([text for question in asked for text in question.wanted])
    reachable = [question.reachable(unit) for question in asked]
    exact, f1 = (sum(one) / len(asked) for one in zip(*reachable, strict=True))
    how |= {
        "reachable": {"exact_match": exact, "f1": f1},
        "several_answers": sum(len(question.wanted) > 1 for question in asked),
        "unanswerable": sum(not any(question.wanted) for question in asked),
    }
    baselines = _baselines(prepare_dir, asked, abstains=abstains)
    groups_of = results.read_groups(prepare_dir / results.TEST_GROUPS)
    assert evaluate.primary in ("exact_match", "f1")
    comparison, kinds = span_verdict.compare(
        [question.wanted for question in asked],
        answers,
        baselines,
        groups=[groups_of[question.row.line] for question in asked],
        loss=loss,
        primary=evaluate.primary,
        unit=unit,
        spans=how,
    )
    best = comparison.base_asked
    _write(stage_dir / results.PREDICTIONS, asked, answers, likely, baselines, best, kinds, unit)
    _write_nbest(stage_dir / results.NBEST, asked, found, abstains=abstains)
    return comparison


def _baselines(prepare_dir: Path, asked: Sequence[_Question], *, abstains: bool) -> dict[str, list[str]]:
    train = [row.input for row in csv_file.iter_canonical(prepare_dir / "train.csv")]
    questions, texts = [one.row.instruction for one in asked], [one.row.input for one in asked]
    found = {span_baselines.SENTENCE: span_baselines.most_similar(train, questions, texts)}
    return found | ({span_baselines.ABSTAIN: [""] * len(asked)} if abstains else {})


def _write(
    path: Path,
    asked: Sequence[_Question],
    answers: Sequence[str],
    likely: Sequence[float],
    baselines: Mapping[str, Sequence[str]],
    best: str,
    kinds: Sequence[str],
    unit: Unit,
) -> None:
    """predictions.csv: `wanted` is the right answer that the tuned one is most like; `base` what `best` answers."""
    others = {name: given for name, given in baselines.items() if name != best}
    header = (*results.PREDICTION_COLUMNS, *map(results.BASE_COLUMN.format, others), results.PROBABILITY_COLUMN)
    with files.atomic_file(path) as temporary, csv_file.csv_writer(temporary, header) as add:
        for i, question in enumerate(asked):
            shown = extra_questions.shown(question.row.instruction, question.row.input)
            wanted = span_scores.nearest(question.wanted, answers[i], unit)
            cells = (given[i] for given in others.values())
            add(
                (question.row.line, shown, wanted, baselines[best][i], answers[i], kinds[i], *cells, f"{likely[i]:.4f}")
            )


def _write_nbest(path: Path, asked: Sequence[_Question], found: Sequence[Found], *, abstains: bool) -> None:
    """The best candidates of each question, one JSON object a line, with the place of each in the text."""
    with files.atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for question, one in zip(asked, found, strict=True):
            listed = [
                {
                    "text": question.text_of(candidate),
                    "start": spans.place_of(question.row.input, question.offsets, candidate.first, candidate.last)[0],
                    "score": round(candidate.score, 4),
                    "probability": round(one.probability(candidate, may_abstain=abstains), 4),
                }
                for candidate in one.candidates
            ]
            record = {"row": question.row.line, "no_answer_score": round(one.nothing, 4), "candidates": listed}
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
