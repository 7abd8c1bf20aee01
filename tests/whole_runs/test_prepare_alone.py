"""`appliance prepare` without transformers in its own process: only if training has the very same tokenizer."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.errors import DataError
from appliance.pipeline import prepare_job, saved_tokenizer
from appliance.pipeline import run as pipeline_run
from appliance.process import files
from appliance.process.forked import Worker
from appliance.prompt import format as prompt_format
from appliance.prompt import tokenizer
from appliance.recipe import resolve
from appliance.rundir.directory import RunDir
from appliance.training import kept_ids
from tests.conftest import write_qa

SPECIAL = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
ROWS = [(f"가격은 {i}?", "만 원") for i in range(40)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """As if nothing had imported transformers yet. What forks have answered about it: a fingerprint, or why not."""
    answers: list[Any] = []

    class Watched(Worker[None, str]):
        def receive(self, *, wall_seconds: float) -> str:
            try:
                answers.append(super().receive(wall_seconds=wall_seconds))
            except Exception as error:
                answers.append(error)
                raise
            return str(answers[-1])

    monkeypatch.setattr(saved_tokenizer, "Worker", Watched)
    monkeypatch.setattr(prepare_job, "sys", SimpleNamespace(modules=dict.fromkeys(set(sys.modules) - {"transformers"})))
    return answers


def prepared(folder: Path, base: Path, rows: list[tuple[str, ...]] = ROWS, **options: str) -> RunDir:
    named = {"model.id": str(base), "data.csv": str(write_qa(folder / "train.csv", rows)), "name": "shop", **options}
    recipe = resolve.load("chatbot-cpu", overrides=[f"{name}={value}" for name, value in named.items()], environ={})
    run_dir = RunDir(folder / "runs" / "shop")
    pipeline_run.run(recipe, run_dir, folder / "cache", until="prepare")
    return run_dir


def test_transformers_is_asked_in_a_fork(base_dir: Path, tmp_path: Path, asked: list[Any]) -> None:
    run_dir = prepared(tmp_path, base_dir)
    (answer,) = asked
    trained_with = prompt_format.from_transformers("alpaca", tokenizer.load(base_dir))
    assert answer == trained_with.fingerprint
    assert kept_ids.why_not(run_dir.stage_dir("prepare") / "train.csv", trained_with) == ""
    assert not [path for path in run_dir.stage_dir("prepare").iterdir() if path.is_dir()]  # nothing is left behind


def test_where_transformers_reads_something_else_its_reading_counts(
    base_dir: Path, tmp_path: Path, asked: list[Any]
) -> None:
    """tokenizer_config.json makes a letter a special token, which tokenizer.json does not know."""
    base = tmp_path / "base"
    base.mkdir()
    for path in filter(Path.is_file, base_dir.iterdir()):
        (base / path.name).write_bytes(path.read_bytes())
    names = ["<pad>", "<s>", "</s>"]
    z = prompt_format.from_folder("alpaca", base_dir).backend.token_to_id("Z")
    decoder = {str(i): {"content": text, **SPECIAL} for i, text in [*enumerate(names), (z, "Z")]}
    config = files.read_json(base / tokenizer.CONFIG) | {"added_tokens_decoder": decoder}
    files.write_json(base / tokenizer.CONFIG, config)
    with pytest.raises(DataError, match="contains the special token 'Z'"):
        prepared(tmp_path, base, [*ROWS, ("Z?", "예")])
    assert len(asked) == 1


def test_a_refusal_is_shown_once_the_prompt_is_known_to_be_that_of_training(
    base_dir: Path, tmp_path: Path, asked: list[Any]
) -> None:
    with pytest.raises(DataError, match="1 row cannot be used"):
        prepared(tmp_path, base_dir, [*ROWS, ("", "예")])
    assert len(asked) == 1


@pytest.mark.parametrize("how", ["killed", "it raises"])
def test_a_fork_that_says_nothing_is_not_believed(
    base_dir: Path, tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    here, refuse_lossy = os.getpid(), saved_tokenizer.refuse_lossy

    def lost(*given: Any) -> None:
        if os.getpid() == here:
            refuse_lossy(*given)
        elif how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            raise ValueError("nobody knows this one")

    monkeypatch.setattr(saved_tokenizer, "refuse_lossy", lost)
    run_dir = prepared(tmp_path, base_dir)
    (why,) = asked
    assert ("killed by SIGKILL" if how == "killed" else "nobody knows this one") in str(why)
    assert run_dir.record("prepare")
    assert str(why) in (run_dir.path / "appliance.log").read_text(encoding="utf-8")


def test_the_fork_has_no_token(
    base_dir: Path, tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
    here, load = os.getpid(), tokenizer.load

    def looks(folder: Path) -> Any:
        assert os.getpid() == here or "HF_TOKEN" not in os.environ
        return load(folder)

    monkeypatch.setattr(tokenizer, "load", looks)
    prepared(tmp_path, base_dir)
    assert isinstance(asked[0], str)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(("until", "loaded"), [("publish", False), ("prepare", True)])
def test_a_process_that_needs_transformers_asks_no_other(
    until: str, loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loaded:
        monkeypatch.setattr(prepare_job, "sys", sys)
    job: Any = SimpleNamespace(until=until)  # nothing else of it is looked at
    assert prepare_job._read_alone(job) is None
