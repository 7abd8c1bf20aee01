"""Base against tuned: the same rows, adapter off and on, figures that can be checked by hand."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.base_model import find as base_model_find
from appliance.engines.transformers import TransformersEngine
from appliance.errors import DataError
from appliance.evaluation import predictions, verdict
from appliance.machine import device
from appliance.pipeline import evaluate
from appliance.process import files
from appliance.prompt import batch as prompt_batch
from appliance.prompt import format as prompt_format
from appliance.recipe.fields import EvaluateSection, ModelSection
from appliance.tasks import causal
from tests.conftest import out_of_memory_over, read_csv
from tests.helpers.models import tiny_adapter, tiny_base

pytestmark = pytest.mark.slow


@pytest.fixture
def prepare_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "prepare"
    folder.mkdir()
    rows = [(line, f"질문 {line}?", "" if line % 2 else "참고", f"답 {line}") for line in range(2, 12)]
    train = [(line, f"물음 {line}!", "", f"답 {line}") for line in range(20, 26)]
    for side, part in (("test", rows), ("val", rows[:7]), ("train", train)):
        with (folder / f"{side}.csv").open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(("row", "instruction", "input", "output"))
            writer.writerows(part)
    encoding = {"loss_on": "answer", "max_seq_length": 512, "cut_long_rows": False}
    files.write_json(tmp_path / "fit.json", {"best_val_loss": 1.25, "encoding": encoding})  # beside the adapter
    with (folder / "test_groups.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(("row", "group"))
        writer.writerows((row[0], f"g{row[0] // 2}") for row in rows)
    return folder


def run(base_dir: Path, adapter_dir: Path, prepare_dir: Path, stage_dir: Path, **changes: object) -> verdict.Comparison:
    stage_dir.mkdir()
    return evaluate.run(
        engine=TransformersEngine(device.device(), causal.TASK),
        device=device.device(),
        base=base_model_find.resolve(str(base_dir), None, base_dir),
        model=ModelSection(id=str(base_dir), load_in_4bit=False),
        evaluate=EvaluateSection(**{"max_new_tokens": 5, **changes}),  # type: ignore[arg-type]
        prompt_name="alpaca",
        seed=0,
        prepare_dir=prepare_dir,
        trained_dir=adapter_dir,
        stage_dir=stage_dir,
        task=causal.TASK,
    )


def test_base_and_tuned_are_two_models(base_dir: Path, prepare_dir: Path, tmp_path: Path) -> None:
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir, strength=0.5)
    seen = run(base_dir, adapter_dir, prepare_dir, tmp_path / "evaluate")
    assert seen.base.loss != seen.tuned.loss

    # the base's figures are those of the base loaded alone, the tuned ones those of the adapter loaded alone
    engine = TransformersEngine(device.device(), causal.TASK)
    prompt = prompt_format.from_folder("alpaca", base_dir)
    rows = read_csv(prepare_dir / "test.csv")
    encoded = [prompt.encode(r["instruction"], r["input"], r["output"]) for r in rows]
    section = ModelSection(id="x", load_in_4bit=False)
    for adapter, scores in ((None, seen.base), (adapter_dir, seen.tuned)):
        model, _ = engine.load_for_inference(base_dir, section, adapter)
        by_hand, tokens = 0.0, 0
        for one in encoded:
            labels = torch.tensor(one.labels)
            with torch.inference_mode():
                logs = torch.log_softmax(model(input_ids=torch.tensor([one.input_ids])).logits[0], -1)
            for position in range(len(one)):
                if labels[position] != prompt_batch.IGNORED:
                    by_hand -= float(logs[position - 1, labels[position]])
                    tokens += 1
        assert scores.loss == pytest.approx(by_hand / tokens, rel=1e-4)


@pytest.mark.parametrize("fits", [3, 0])
def test_rows_are_halved_until_they_fit(
    fits: int, base_dir: Path, prepare_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same figures with less memory; where not even one row fits, the error is the pipeline's to explain."""
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir, strength=0.5)
    load, seen = TransformersEngine.load_for_inference, []

    def load_on_a_small_card(*args: Any) -> Any:
        model, tokenizer = load(*args)
        small = model.get_base_model().base_model  # its first two calls find out what follows the head
        seen.append(out_of_memory_over(monkeypatch, small, fits, at_call=3))
        return model, tokenizer

    with_room = run(base_dir, adapter_dir, prepare_dir, tmp_path / "room")
    monkeypatch.setattr(TransformersEngine, "load_for_inference", load_on_a_small_card)
    if not fits:
        with pytest.raises(torch.OutOfMemoryError):
            run(base_dir, adapter_dir, prepare_dir, tmp_path / "small")
        assert seen[0][2:] == [4, 2, 1]
        return
    small = run(base_dir, adapter_dir, prepare_dir, tmp_path / "small")
    assert small.tuned.loss == pytest.approx(with_room.tuned.loss, rel=1e-5)
    assert read_csv(tmp_path / "small" / "predictions.csv") == read_csv(tmp_path / "room" / "predictions.csv")
    notes = files.read_json(tmp_path / "small" / "measures.json")["out_of_memory"]
    assert [note.partition(" did not fit")[0] for note in notes] == [
        "losses: 4 rows at once", "answers: 10 rows at once", "answers: 5 rows at once",
    ]  # fmt: skip
    assert "Tried to allocate" in notes[0]
    assert files.read_json(tmp_path / "room" / "measures.json")["out_of_memory"] == []


def test_what_is_written(base_dir: Path, prepare_dir: Path, tmp_path: Path) -> None:
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir, strength=0.5)
    seen = run(base_dir, adapter_dir, prepare_dir, tmp_path / "evaluate", max_rows=6)
    figures = files.read_json(tmp_path / "evaluate" / "metrics.json")
    assert set(figures) == {
        "rows", "rows_of_test", "rows_with_facts", "base", "tuned", "f1_unit", "primary", "wins", "closer", "losses",
        "interval", "groups", "verdict", "reason", "cut_rows", "cautions",
        "base_asked", "bases", "base_examples", "bases_left_out",
    }  # fmt: skip
    assert set(figures["base"]) == {"exact_match", "facts_right", "f1", "rouge_l", "chrf", "loss", "stop_rate"}
    assert (figures["rows"], figures["rows_of_test"], figures["f1_unit"]) == (6, 10, "character")
    assert (figures["groups"], figures["verdict"]) == (5, "not proven")  # two of the six share a question
    assert "only 5 different questions" in seen.summary()
    measures = files.read_json(tmp_path / "evaluate" / "measures.json")
    # "답 2" and EOS are 6 tokens of a byte each: over the 5 of max_new_tokens
    assert measures["stops"] == {"rows_that_fit": 0, "base": None, "tuned": None}
    assert measures["val_loss"]["best"] == 1.25
    assert (measures["val_loss"]["compute_dtype"], measures["val_loss"]["in_4bit"]) == ("float32", False)
    with (tmp_path / "evaluate" / "predictions.csv").open(encoding="utf-8", newline="") as handle:
        predictions = list(csv.DictReader(handle))
    assert len(predictions) == 6
    assert [int(p["row"]) for p in predictions] == sorted(int(p["row"]) for p in predictions)
    assert all(p["wanted"] == f"답 {p['row']}" for p in predictions)
    verdicts = [p["verdict"] for p in predictions]
    assert [verdicts.count(one) for one in ("win", "closer", "loss")] == [seen.wins, seen.closer, seen.losses]
    assert (figures["wins"], figures["closer"], figures["losses"]) == (seen.wins, seen.closer, seen.losses)
    (caution,) = figures["cautions"]  # "답 2" does not fit into 5 tokens, so that all rows judge
    assert caution["name"] == "does_not_stop"
    assert [p["stopped"] for p in predictions] == ["no"] * 6
    assert caution["sentence"].startswith("none of 6 answers ended by themselves")
    by_row = {int(p["row"]): (p["wanted"], p["tuned"]) for p in predictions}
    assert len(caution["rows"]) == 3
    assert all(by_row[row["row"]] == (row["wanted"], row["got"]) for row in caution["rows"])
    proof_rows = files.read_json(tmp_path / "evaluate" / "proof_rows.json")
    prompt = prompt_format.from_folder("alpaca", base_dir)
    assert len(proof_rows) == 6
    for row, prediction in zip(proof_rows, predictions, strict=True):
        assert prompt.answer_text(row["input_ids"][row["prompt_tokens"] :]) == prediction["tuned"]


def test_long_answers_are_held_to_the_length_of_training(
    base_dir: Path, prepare_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """data.on_too_long=cut: a long answer is not put through the loss, in test as little as in val and train."""
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir, strength=0.5)
    encoding = {"loss_on": "all", "max_seq_length": 256, "cut_long_rows": True}
    files.write_json(tmp_path / "fit.json", {"best_val_loss": 1.25, "encoding": encoding})
    with (prepare_dir / "test.csv").open("a", encoding="utf-8") as handle:
        handle.write(f"20,긴 질문?,,{'답' * 1500}\n")
    with (prepare_dir / "test_groups.csv").open("a", encoding="utf-8") as handle:
        handle.write("20,long\n")
    computed, widths = TransformersEngine.summed_loss, []

    def summed_loss(self: TransformersEngine, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        widths.append(batch["input_ids"].shape[1])
        return computed(self, model, batch)

    monkeypatch.setattr(TransformersEngine, "summed_loss", summed_loss)
    seen = run(base_dir, adapter_dir, prepare_dir, tmp_path / "evaluate", max_new_tokens=8)
    assert max(widths) == 256
    assert seen.cut_rows == files.read_json(tmp_path / "evaluate" / "metrics.json")["cut_rows"] == 1
    assert seen.summary().endswith("; 1 long answer cut for the loss")
    # the long answer itself did not fit into max_new_tokens, whatever is left of it
    assert files.read_json(tmp_path / "evaluate" / "measures.json")["stops"]["rows_that_fit"] == 10
    encoding["cut_long_rows"] = False  # then prepare has left no such row, unless the tokenizer has changed since
    files.write_json(tmp_path / "fit.json", {"best_val_loss": 1.25, "encoding": encoding})
    with pytest.raises(DataError, match=r"row 20 has 4\d{3} tokens, over max_seq_length 256"):
        run(base_dir, adapter_dir, prepare_dir, tmp_path / "changed")


def test_answers_end_where_the_positions_of_the_base_do(prepare_dir: Path, tmp_path: Path) -> None:
    """GPT-2 has a vector for each position, and none after the last: an answer that went on would be a crash."""
    base_dir = tiny_base(tmp_path / "gpt2", family="gpt2")  # 512 positions; a prompt takes over 150
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir, fan_in_fan_out=True)
    run(base_dir, adapter_dir, prepare_dir, tmp_path / "evaluate", max_new_tokens=500, max_rows=2)
    rows = files.read_json(tmp_path / "evaluate" / "proof_rows.json")
    assert all(len(row["input_ids"]) <= 512 for row in rows)
    with pytest.raises(DataError, match=r"a question has \d+ tokens with its prompt; the base has 512 positions"):
        run(base_dir, adapter_dir, prepare_dir, tmp_path / "too-long", extra_prompts=["길" * 200])


def test_an_answer_with_a_lone_carriage_return_stays_one_row(tmp_path: Path) -> None:
    from appliance.evaluation.generate import Answer
    from appliance.rows.csv_file import Row

    answers = {who: [Answer((1,), f'a\rb, "{who}"\n끝', True)] for who in ("base", "tuned")}
    scores = {who: [0.0] for who in answers}
    predictions.write(tmp_path / "p.csv", [Row(2, "q", "", "w")], answers, scores, "word")
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as handle:
        (row,) = csv.DictReader(handle)
    assert row["tuned"] == 'a\rb, "tuned"\n끝'
    assert row["verdict"] == "tie"


def test_a_better_and_a_worse_model_are_told_apart() -> None:
    from appliance.evaluation.generate import Answer
    from appliance.rows.csv_file import Row

    rows = [Row(i, f"q{i}", "", f"정답 {i}") for i in range(40)]
    right = [Answer((1,), f"정답 {i}", True) for i in range(40)]
    wrong = [Answer((1,), "모름", False) for i in range(40)]
    groups = [str(i) for i in range(40)]
    losses = {"base": 2.0, "tuned": 1.0}
    better, by_row = verdict.compare(rows, {"base": wrong, "tuned": right}, losses, groups, "f1")
    assert (better.verdict, better.wins, better.losses) == ("better", 40, 0)
    assert by_row["tuned"] == [1.0] * 40
    assert (better.base.stop_rate, better.tuned.stop_rate) == (0.0, 1.0)
    worse, _ = verdict.compare(rows, {"base": right, "tuned": wrong}, losses, groups, "f1")
    assert (worse.verdict, worse.wins, worse.losses) == ("worse", 0, 40)
    assert worse.interval[1] < 0
    same, _ = verdict.compare(rows, {"base": right, "tuned": right}, losses, groups, "f1")
    assert same.verdict == "not proven"


def test_nearer_and_wrong_is_closer_and_no_win() -> None:
    """Template answers with other numbers: F1 0.85, not one answer right."""
    from appliance.evaluation.generate import Answer
    from appliance.rows.csv_file import Row

    rows = [Row(i, f"q{i}", "", f"가구 매장은 {i + 20}층에 있습니다.") for i in range(40)]
    wrong = [Answer((1,), f"가구 매장은 {i + 61}층에 있습니다.", True) for i in range(40)]
    base = [Answer((1,), "모름", True)] * 39 + [Answer((1,), rows[39].output, True)]
    groups = [str(i) for i in range(40)]
    seen, by_row = verdict.compare(rows, {"base": base, "tuned": wrong}, {"base": 2.0, "tuned": 1.0}, groups, "f1")
    assert (seen.verdict, seen.tuned.exact_match, seen.tuned.facts_right) == ("better", 0.0, 0.0)
    assert seen.tuned.f1 > 0.8
    assert (seen.wins, seen.closer, seen.losses) == (0, 39, 1)
    found = verdict.row_verdicts([row.output for row in rows], [one.text for one in wrong], by_row, "character")
    assert found == ["closer"] * 39 + ["loss"]


def test_facts_right_judges_the_rows_that_have_facts() -> None:
    from appliance.evaluation.generate import Answer
    from appliance.rows.csv_file import Row

    rows = [Row(i, f"q{i}", "", f"{i + 1}층" if i % 2 else "무료입니다") for i in range(40)]
    right = [Answer((1,), row.output, True) for row in rows]
    base = [Answer((1,), "무료입니다", True)] * 40
    groups = [str(i) for i in range(40)]
    losses = {"base": 2.0, "tuned": 1.0}
    seen, by_row = verdict.compare(rows, {"base": base, "tuned": right}, losses, groups, "facts_right")
    assert (seen.rows, seen.rows_judged, seen.tuned.facts_right) == (40, 20, 1.0)
    assert (seen.groups, seen.interval[1], seen.verdict) == (20, 1.0, "better")  # 0.5 if the other rows counted
    assert (seen.wins, seen.closer, seen.losses) == (20, 0, 0)
    verdicts = verdict.row_verdicts([row.output for row in rows], [one.text for one in right], by_row, "character")
    assert verdicts == ["not judged", "win"] * 20
    assert seen.summary().startswith("facts_right 0.0% -> 100.0% on 20 of 40 test rows")


def test_facts_right_without_facts_is_refused_before_the_models_are_loaded(
    base_dir: Path, prepare_dir: Path, tmp_path: Path
) -> None:
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir)
    path = prepare_dir / "test.csv"
    path.write_text(re.sub(r"답 \d+", "답", path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(
        DataError, match=r"evaluate\.primary is facts_right, but none of the 10 wanted answers"
    ) as caught:
        run(base_dir, adapter_dir, prepare_dir, tmp_path / "evaluate", primary="facts_right")
    assert "--set evaluate.primary=f1" in caught.value.hint
