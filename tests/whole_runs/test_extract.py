"""Answers found in texts, from a CSV to a release that plain transformers loads; interrupted, resumed, replayed."""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import inspect
from appliance.errors import RecipeError
from appliance.evaluation import compare_runs
from appliance.pipeline import export
from appliance.pipeline import run as pipeline_run
from appliance.process import files
from appliance.recipe import resolve
from appliance.release import reload_spans, replay
from appliance.rundir import results
from appliance.rundir.directory import RunDir
from appliance.serving import loaded_model
from tests.conftest import read_csv
from tests.helpers import plain_process
from tests.helpers.classifiers import tiny_bert
from tests.helpers.stopped import stopped_at

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]

NAMES, DAYS = ("민수", "영희", "철수"), ("월요일", "화요일", "수요일")
FILLER = ("사과", "배", "감", "귤", "밤", "좋아요", "최고", "별로")
ASKED = {"누가 갔나?": NAMES, "언제 갔나?": DAYS}
STEPS, STOPPED_AT = 120, 43
TOKENS, STRIDE = 40, 10


def write_rows(path: Path, rows: int = 160) -> Path:
    """Texts of 10 to 60 words with a name, or a day, or both; every fourth is asked for what it lacks."""
    chance = random.Random(7)
    with path.open("w", newline="", encoding="utf-8") as stream:
        add = csv.writer(stream).writerow
        add(("question", "context", "answer", "answer_start"))
        for i in range(rows // 2):
            words = [chance.choice(FILLER) for _ in range(chance.randint(10, 60))] + [str(i)]
            held = {"누가 갔나?": chance.choice(NAMES), "언제 갔나?": chance.choice(DAYS)}
            missing = list(held)[i % 2] if i % 2 == 0 else ""
            for question, answer in held.items():
                if question != missing:
                    words.insert(chance.randint(0, len(words)), answer)
            context = " ".join(words)
            for question, answer in held.items():
                found = "" if question == missing else answer
                start = context.index(found) if found and i % 3 else ""
                add((question, context, found, start))
    return path


def begin(folder: Path, **settings: str) -> Any:
    """The recipe as shipped, on a tiny base."""
    if not (folder / "base").is_dir():
        tiny_bert(folder / "base", (" ".join((*NAMES, *DAYS, *FILLER)), " ".join(ASKED), "0 1 2 3 4 5 6 7 8 9"))
        write_rows(folder / "train.csv")
    small = {
        "model.id": str(folder / "base"),
        "model.max_seq_length": str(TOKENS),
        "data.csv": str(folder / "train.csv"),
        "data.stride": str(STRIDE),
        "data.test_fraction": "0.2",
        "train.max_steps": str(STEPS),
        "train.batch_size": "16",
        "train.micro_batch_size": "8",
        "train.eval_every": "20",
        "train.warmup_steps": "0",
        "train.learning_rate": "3e-3",
        "train.patience": "6",
        "evaluate.max_new_tokens": "4",
    }
    overrides = [f"{key}={value}" for key, value in {**small, **settings}.items()]
    return resolve.load("bert-squad", overrides=overrides, environ={})


def finish(folder: Path, resolved: Any, **how: Any) -> Path:
    run = folder / "runs" / "reader"
    pipeline_run.run(resolved, RunDir(run), folder / "cache", even_if_worse=True, **how)
    return run


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("reader")
    finish(folder, begin(folder))
    return folder


def test_the_release_gives_the_evaluated_answers_without_anything_of_ours(reader: Path) -> None:
    run = reader / "runs" / "reader"
    rows = read_csv(run / "evaluate" / "predictions.csv")
    release = run / "publish" / "release" / "model"
    card = (release / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0].replace("FOLDER_OR_REPO", str(release))
    code += "import json, sys\nassert 'appliance' not in sys.modules\n"
    code += "print(json.dumps([answers(q, c)[0][0] for q, c in json.load(sys.stdin)]))\n"
    prepared = {row["row"]: row for row in read_csv(run / "prepare" / "test.csv")}
    asked = [(prepared[row["row"]]["instruction"], prepared[row["row"]]["input"]) for row in rows]
    given = plain_process.printed(code, asked)
    assert given == [row["tuned"] for row in rows]
    assert all(text in context for text, (_, context) in zip(given, asked, strict=True))
    names = [gate["name"] for gate in files.read_json(run / "publish" / "hub.json")["gates"]]
    assert reload_spans.NAME in names
    assert "one_span_is_trained" in names
    assert "tuned_model_stops" not in names
    assert files.read_json(run / "merge" / "proof.json")["passed"]


def test_it_finds_what_is_there_and_nothing_if_nothing_is(reader: Path) -> None:
    run = reader / "runs" / "reader"
    rows = read_csv(run / "evaluate" / "predictions.csv")
    figures = files.read_json(run / "evaluate" / "metrics.json")
    tuned = figures["tuned"]
    right = [row["tuned"] == row["wanted"] for row in rows]
    assert tuned["exact_match"] == sum(right) / len(rows) >= 0.8
    without = [is_right for row, is_right in zip(rows, right, strict=True) if not row["wanted"]]
    assert len(without) == figures["spans"]["unanswerable"] > 0
    assert tuned["right_without_answer"] == sum(without) / len(without) >= 0.5
    assert set(figures["bases"]) == {"sentence", "abstain"}
    assert figures["bases"]["abstain"]["exact_match"] == len(without) / len(rows)
    assert figures["spans"]["reachable"] == {"exact_match": 1.0, "f1": 1.0}
    assert figures["spans"]["threshold"] == 0.0
    best = [json.loads(line) for line in (run / "evaluate" / results.NBEST).read_text(encoding="utf-8").splitlines()]
    prepared = {int(row["row"]): row["input"] for row in read_csv(run / "prepare" / "test.csv")}
    for one in best:
        for candidate in one["candidates"]:
            begin = candidate["start"]
            assert prepared[one["row"]][begin : begin + len(candidate["text"])] == candidate["text"]
        scores = [candidate["score"] for candidate in one["candidates"]]
        assert scores == sorted(scores, reverse=True)


def test_a_text_is_on_one_side_and_read_in_windows(reader: Path) -> None:
    run = reader / "runs" / "reader"
    texts = {side: {row["input"] for row in read_csv(run / f"prepare/{side}.csv")} for side in ("train", "val", "test")}
    assert not texts["train"] & (texts["val"] | texts["test"])
    assert not texts["val"] & texts["test"]
    summary = files.read_json(run / "prepare" / "summary.json")
    cut = files.read_json(run / "prepare" / "spans.json")
    assert summary["windows"] == cut["windows"]
    assert all(cut["windows"][side] > summary[side] for side in texts)
    assert summary["cut_rows"] == summary["rejected"] == 0
    assert summary["longest_row_tokens"] == TOKENS
    assert cut["unanswerable"]["train"] > 0


def test_inspect_shows_the_windows_and_marks_the_answer(reader: Path) -> None:
    run = reader / "runs" / "reader"
    for row in read_csv(run / "prepare" / "test.csv"):
        lines = inspect.inspect(run, int(row["row"]), reader / "cache")
        marked = [line.split("[bold]")[1].removesuffix("[/]") for line in lines if line.startswith("answer ")]
        assert set(marked) == ({row["output"]} if row["output"] else set())
        windows = [line for line in lines if line.startswith("window ")]
        assert f"{len(windows)} window" in lines[0]
        assert sum("begins at token" in line for line in windows) == len(marked)


def test_card_and_page_say_how_answers_are_found(reader: Path) -> None:
    run = reader / "runs" / "reader"
    card = (run / "publish" / "release" / "model" / "README.md").read_text(encoding="utf-8")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "pipeline_tag: question-answering" in card
    assert f"windows of {TOKENS} tokens, question included, that overlap by {STRIDE}" in card
    assert "or no answer, if that scores higher" in card
    for text in ("the sentence most like the question (TF-IDF)", "always no answer", "questions without an answer"):
        assert text in page, text
        assert text in card, text
    for text in ("appliance chat", "appliance serve", "stopped by themselves", "vllm", "generate("):
        assert text not in card, text
    assert "def answers(question, context)" in page
    counts = files.read_json(run / "prepare" / "summary.json")
    assert "Row lengths" not in page
    assert "Window lengths" in page
    assert counts["windows"]["test"] > counts["test"]
    for side in ("train", "val", "test"):
        assert re.search(rf"{counts['windows'][side]} windows, \d+ to \d+ tokens", page), side
    assert f"to {counts['longest_row_tokens']} tokens" in page
    assert "<bdi>base</bdi>" not in page  # what its untrained head says is chance


def test_replay_finds_nothing_changed_and_it_cannot_be_talked_to(reader: Path) -> None:
    run = reader / "runs" / "reader"
    assert [one for one in replay.replay_findings(run, reader / "cache") if one.verdict == "fails"] == []
    tuned, opponent = compare_runs.across([run])
    assert tuned.exact_match == files.read_json(run / "evaluate" / "metrics.json")["tuned"]["exact_match"]
    assert "no answer" in opponent.name or "sentence" in opponent.name
    with pytest.raises(RecipeError, match="an extractive reader answers with a part of a text"):
        loaded_model.load(run, max_new_tokens=None, temperature=None)
    with pytest.raises(RecipeError, match="an extractive reader; GGUF files are made of models that continue text"):
        export.by_name(run, ["q8_0"])


def test_a_release_with_another_head_is_refused(reader: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    run, model = reader / "runs" / "reader", tmp_path / "model"
    shutil.copytree(run / "publish" / "release" / "model", model)
    weights = load_file(model / "model.safetensors")
    for name in ("qa_outputs.weight", "qa_outputs.bias"):
        weights[name] = -weights[name]
    (model / "model.safetensors").unlink()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    found = reload_spans.gate(model, run, tmp_path)
    assert not found.passed
    assert "other answers by the code of the card than evaluated: row" in found.meaning


def test_a_resumed_training_is_the_uninterrupted_one(
    reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(reader / "base", tmp_path / "base")
    shutil.copy(reader / "train.csv", tmp_path)
    resolved = begin(tmp_path)
    with stopped_at(STOPPED_AT, monkeypatch):
        finish(tmp_path, resolved, until="train")
    run, whole = finish(tmp_path, resolved, until="train"), reader / "runs" / "reader"
    for name in ("train/model/model.safetensors", "train/model/config.json"):
        assert files.sha256_of(run / name) == files.sha256_of(whole / name)
    losses = [line.get("val_loss") for line in results.read_metrics(run / "train" / "metrics.jsonl")]
    assert losses == [line.get("val_loss") for line in results.read_metrics(whole / "train" / "metrics.jsonl")]


def test_decomposed_texts_give_decomposed_answers(reader: Path, tmp_path: Path) -> None:
    """The base's vocabulary is composed, and its tokenizer composes; what is found are the file's own characters."""
    shutil.copytree(reader / "base", tmp_path / "base")
    words = files.read_json(tmp_path / "base" / "tokenizer.json")
    words["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, words["normalizer"]]}
    files.write_json(tmp_path / "base" / "tokenizer.json", words)
    text = (reader / "train.csv").read_text(encoding="utf-8")
    (tmp_path / "train.csv").write_text(unicodedata.normalize("NFD", text).replace("answer_start", "x"), "utf-8")
    run = finish(tmp_path, begin(tmp_path), until="evaluate")
    rows = read_csv(run / "evaluate" / "predictions.csv")
    figures = files.read_json(run / "evaluate" / "metrics.json")
    assert figures["tuned"]["exact_match"] >= 0.8
    assert all(row["tuned"] in row["question"] for row in rows)  # with its text
    found = {row["tuned"] for row in rows} - {""}
    assert found
    assert all(unicodedata.is_normalized("NFD", one) and not unicodedata.is_normalized("NFC", one) for one in found)
