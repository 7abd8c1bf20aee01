"""A classifier from a CSV to a release that plain `pipeline` loads; interrupted, resumed, replayed, refused."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.cli import inspect
from appliance.errors import RecipeError
from appliance.evaluation import compare_runs
from appliance.pipeline import export
from appliance.pipeline import run as pipeline_run
from appliance.process import files
from appliance.recipe import resolve
from appliance.release import reload_classes, replay
from appliance.rundir import base_asked, results
from appliance.rundir.directory import RunDir
from appliance.serving import loaded_model
from appliance.training.task_trainer import TaskTrainer
from tests.conftest import read_csv
from tests.helpers import plain_process
from tests.helpers.classifiers import tiny_bert
from tests.helpers.stopped import stopped_at

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]

FRUITS = ["사과", "배", "감", "귤", "밤"]
# What a text says after "안" is its opposite: a linear model on letter groups sees both words in all classes.
WORDS = {"기쁨": ("좋아요", "최고"), "슬픔": ("싫어요", "늦어요"), "중립": ("별로", "빨라요")}
STEPS, STOPPED_AT = 40, 13


def write_labelled(path: Path, rows: int = 120) -> Path:
    """Rows of three Korean classes, twice as many of the first one; digits that the base's vocabulary lacks."""
    kinds = [kind for kind in ("기쁨", "기쁨", "슬픔", "중립") for _ in range(1)]
    with path.open("w", newline="", encoding="utf-8") as stream:
        add = csv.writer(stream).writerow
        add(("text", "label"))
        for i in range(rows):
            kind = kinds[i % 4]
            add((f"{FRUITS[i % 5]} {WORDS[kind][i // 4 % 2]} {i}", kind))
    return path


def begin(folder: Path, **settings: str) -> Any:
    """The recipe as shipped, on a tiny base."""
    if not (folder / "base").is_dir():
        tiny_bert(folder / "base")
        write_labelled(folder / "train.csv")
    small = {
        "model.id": str(folder / "base"),
        "data.csv": str(folder / "train.csv"),
        "data.test_fraction": "0.2",
        "train.max_steps": str(STEPS),
        "train.batch_size": "16",
        "train.micro_batch_size": "8",
        "train.eval_every": "10",
        "train.warmup_steps": "0",
        "train.learning_rate": "3e-3",
        "train.class_weights": "balanced",
    }
    overrides = [f"{key}={value}" for key, value in {**small, **settings}.items()]
    return resolve.load("bert-classify", overrides=overrides, environ={})


def finish(folder: Path, resolved: Any, **how: Any) -> Path:
    run = folder / "runs" / "shop"
    pipeline_run.run(resolved, RunDir(run), folder / "cache", even_if_worse=True, **how)
    return run


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("bert")
    finish(folder, begin(folder))
    return folder


def by_plain_pipeline(release: Path, texts: list[str]) -> list[str]:
    """The labels by a process that knows transformers alone, with the card's code."""
    card = (release / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0].replace("FOLDER_OR_REPO", str(release))
    assert 'pipeline("text-classification"' in code
    code += "import json, sys\nassert 'appliance' not in sys.modules\n"
    code += "print(json.dumps([one['label'] for one in classify(json.load(sys.stdin))]))\n"
    return list(plain_process.printed(code, texts))


def test_the_release_gives_the_evaluated_labels_without_anything_of_ours(bert: Path) -> None:
    run = bert / "runs" / "shop"
    rows = read_csv(run / "evaluate" / "predictions.csv")
    assert by_plain_pipeline(run / "publish/release/model", [row["question"] for row in rows]) == [
        row["tuned"] for row in rows
    ]
    figures = files.read_json(run / "evaluate" / "metrics.json")
    right = sum(row["tuned"] == row["wanted"] for row in rows)
    assert figures["tuned"]["accuracy"] == right / len(rows) >= 0.9
    for name, column in (("linear", "base"), ("majority", "base_majority")):
        assert figures["bases"][name]["accuracy"] == sum(row[column] == row["wanted"] for row in rows) / len(rows)
    assert {row["base_majority"] for row in rows} == {"기쁨"}
    assert sum(map(sum, figures["classes"]["confusion"])) == len(rows)
    assert files.read_json(run / "merge" / "proof.json")["passed"]
    names = [gate["name"] for gate in files.read_json(run / "publish" / "hub.json")["gates"]]
    assert reload_classes.NAME in names
    assert "one_class_is_trained" in names
    assert "tuned_model_stops" not in names
    assert all(0.3 < float(row["probability"]) <= 1 for row in rows)


def test_every_class_is_on_every_side(bert: Path) -> None:
    run = bert / "runs" / "shop"
    labels = files.read_json(run / "prepare" / "labels.json")["classes"]
    assert [one["name"] for one in labels] == ["기쁨", "슬픔", "중립"]
    assert [one["rows"] for one in labels] == [
        {"train": 42, "val": 6, "test": 12},
        {"train": 21, "val": 3, "test": 6},
        {"train": 21, "val": 3, "test": 6},
    ]
    config = files.read_json(run / "publish" / "release" / "model" / "config.json")
    assert config["id2label"] == {"0": "기쁨", "1": "슬픔", "2": "중립"}
    assert config["label2id"] == {"기쁨": 0, "슬픔": 1, "중립": 2}
    assert config["architectures"] == ["BertForSequenceClassification"]


def test_inspect_shows_what_is_read_and_the_class(bert: Path) -> None:
    run = bert / "runs" / "shop"
    row = read_csv(run / "prepare" / "test.csv")[0]
    lines = inspect.inspect(run, int(row["row"]), bert / "cache")
    names = [one["name"] for one in files.read_json(run / "prepare" / "labels.json")["classes"]]
    assert lines[0].endswith(f"read, class {names.index(row['output'])} of {len(names)} trained")
    assert lines[1].startswith("read     [dim]")
    assert lines[-1] == f"class    [bold]{row['output']}[/]"
    assert row["output"] not in "".join(lines[1:-1])


def test_card_and_page_show_the_classes_and_nothing_of_a_model_that_writes(bert: Path) -> None:
    run = bert / "runs" / "shop"
    card = (run / "publish" / "release" / "model" / "README.md").read_text(encoding="utf-8")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "pipeline_tag: text-classification" in card
    assert "The answer is one of 3 classes: `기쁨`" in card
    for text in ("By class", "Which class was taken for which", "macro F1", "always the commonest class"):
        assert text in page, text
    for text in ("appliance chat", "appliance serve", "exact match", "stopped by themselves", "vllm", "generate("):
        assert text not in card
        assert text not in page, text


def test_a_table_of_runs_has_its_accuracy_and_no_likeness_of_names(bert: Path) -> None:
    run = bert / "runs" / "shop"
    figures = files.read_json(run / "evaluate" / "metrics.json")
    tuned, opponent = compare_runs.across([run])
    assert (tuned.exact_match, opponent.exact_match) == (figures["tuned"]["accuracy"], figures["base"]["accuracy"])
    assert tuned.cells()[2:6] == ("–", "–", "–", "–")
    assert opponent.name == base_asked.described(figures)


def test_replay_finds_nothing_changed_and_it_cannot_be_talked_to(bert: Path) -> None:
    run = bert / "runs" / "shop"
    found = replay.replay_findings(run, bert / "cache")
    assert [one for one in found if one.verdict == "fails"] == []
    with pytest.raises(RecipeError, match="a classifier answers with one of its classes"):
        loaded_model.load(run, max_new_tokens=None, temperature=None)
    with pytest.raises(RecipeError, match="a classifier; GGUF files are made of models that continue text"):
        export.by_name(run, ["q8_0"])


def test_a_release_whose_labels_changed_places_is_refused(bert: Path, tmp_path: Path) -> None:
    run, model = bert / "runs" / "shop", tmp_path / "model"
    shutil.copytree(run / "publish" / "release" / "model", model)
    config = files.read_json(model / "config.json")
    config["id2label"] = {"0": "슬픔", "1": "기쁨", "2": "중립"}
    files.write_json(model / "config.json", config)
    found = reload_classes.gate(model, run, tmp_path)
    assert not found.passed
    assert found.measured >= 12
    assert "evaluated '기쁨', now '슬픔'" in found.meaning or "evaluated '슬픔', now '기쁨'" in found.meaning


def test_a_resumed_training_is_the_uninterrupted_one_and_rare_classes_weigh_more(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bert / "base", tmp_path / "base")
    shutil.copy(bert / "train.csv", tmp_path)
    resolved = begin(tmp_path)
    weights: set[tuple[float, ...]] = set()
    with stopped_at(STOPPED_AT, monkeypatch, lambda trainer, *_: weights.add(trainer._task.weights)):
        finish(tmp_path, resolved, until="train")
    run, whole = finish(tmp_path, resolved, until="train"), bert / "runs" / "shop"
    assert weights == {(84 / (3 * 42), 84 / (3 * 21), 84 / (3 * 21))}
    for name in ("train/model/model.safetensors", "train/model/config.json"):
        assert files.sha256_of(run / name) == files.sha256_of(whole / name)
    assert [line.get("val_loss") for line in results.read_metrics(run / "train" / "metrics.jsonl")] == [
        line.get("val_loss") for line in results.read_metrics(whole / "train" / "metrics.jsonl")
    ]


def test_weights_count_in_a_step_and_not_in_an_evaluation() -> None:
    class Fixed:
        weights = (0.5, 2.0)

        def predicted(self, model: Any, inputs: Any) -> Any:
            del model, inputs
            return torch.zeros(2, 2), torch.tensor([0, 1])

    trainer = TaskTrainer.__new__(TaskTrainer)
    trainer._task = Fixed()  # type: ignore[assignment]
    nats = torch.log(torch.tensor(2.0)).item()
    assert trainer.compute_loss(None, {}, num_items_in_batch=2).item() == pytest.approx(2.5 * nats / 2)
    assert trainer.compute_loss(None, {}).item() == pytest.approx(nats)
