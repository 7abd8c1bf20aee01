"""Metrics passed on to trackers: what they get and what they never get, and that none of them can harm a training."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from appliance.base_model.base import Base
from appliance.pipeline import rehearse
from appliance.recipe import resolve
from appliance.recipe.fields import TrainSection
from appliance.training import trackers
from appliance.training.report_to import ReportTo
from tests.helpers import stand_ins
from tests.helpers.stand_ins import NAMES
from tests.training.test_train import base as base
from tests.training.test_train import fit, losses
from tests.training.test_train import prepare_dir as prepare_dir

TOKEN = "hf_" + "QzXwVbNmKjHgFdSaPoIuYtReWqLk7531"
ROW = "행카나리 아무도 모르는 답"
FACTS = {"base_model": "me/base", "parameters": 1234, "r": 8}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return stand_ins.installed(monkeypatch)


def trained(stage_dir: Path, names: tuple[str, ...] = NAMES, act: Callable[[], None] = lambda: None) -> None:
    """What the trainer calls in a training of two steps."""
    stage_dir.mkdir(parents=True, exist_ok=True)
    args = TrainingArguments(str(stage_dir / "checkpoints"), hub_token=TOKEN, report_to="none", use_cpu=True)
    state, control = TrainerState(is_world_process_zero=True), TrainerControl()
    report_to = ReportTo(names, stage_dir, FACTS)
    with report_to:
        for one in report_to.callbacks:
            one.on_train_begin(args, state, control, model=ROW, processing_class=ROW)
        act()
        for step in (1, 2):
            state.global_step = step
            logs: dict[str, Any] = {"loss": 0.5 / step, "samples": ROW}
            for one in report_to.callbacks:
                one.on_log(args, state, control, logs=logs, model=ROW)
                one.on_save(args, state, control, model=ROW)
        for one in report_to.callbacks:
            one.on_train_end(args, state, control, model=ROW)


def of(told: list[tuple[str, str]], name: str) -> list[str]:
    return [arguments for called, arguments in told if called == name]


def test_every_tracker_gets_the_metrics_of_each_step(told: list[tuple[str, str]], tmp_path: Path) -> None:
    trained(tmp_path / "shop" / "train")
    assert [float(call.split("'train/loss': ")[1].split(",")[0]) for call in of(told, "wandb.log")] == [0.5, 0.25]
    assert len(of(told, "trackio.log")) == 2
    assert "'loss': 0.25" in of(told, "mlflow.log_metrics")[1]
    assert any("'train/loss', 0.25, 2" in call for call in of(told, "tensorboard.SummaryWriter().add_scalar"))
    assert "me/base" in of(told, "wandb.config.update")[0]
    run_id = (tmp_path / "shop" / "train" / "tracking" / "run_id").read_text()
    assert f"'name': 'shop-{run_id}'" in of(told, "wandb.init")[0]
    assert f"'name': 'shop-{run_id}'" in of(told, "trackio.init")[0]
    assert f"'run_name': 'shop-{run_id}'" in of(told, "mlflow.start_run")[0]


def test_no_row_no_token_and_no_path_of_this_machine_is_passed_on(told: list[tuple[str, str]], tmp_path: Path) -> None:
    trained(tmp_path / "shop" / "train")
    here = ("environment", "tensorboard.SummaryWriter", "mlflow.set_tracking_uri")  # these name files, and send nothing
    sent = [text for name, text in told if name not in here]
    assert len(sent) > 15
    for canary in (ROW, ascii(ROW)[1:-1], TOKEN, str(tmp_path)):
        assert [text for text in sent if canary in text] == []
    for name in here[1:]:
        assert str(tmp_path / "shop" / "train" / "tracking") in of(told, name)[0]
    assert "'space_id': None" in of(told, "trackio.init")[0]


def test_they_take_nothing_by_themselves(
    told: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the terminal's lines nor the command line, the code or the weights, whatever the user's shell says."""
    monkeypatch.setenv("WANDB_LOG_MODEL", "end")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    before = dict(os.environ)
    trained(tmp_path / "train", ("wandb",))
    (seen,) = of(told, "environment")
    for wanted in (
        *("'WANDB_CONSOLE': 'off'", "'WANDB_LOG_MODEL': 'false'", "'WANDB_X_DISABLE_META': 'true'"),
        *("'HF_MLFLOW_LOG_ARTIFACTS': 'false'", "'MLFLOW_DISABLE_TELEMETRY': 'true'", "'WANDB_PROJECT': 'mine'"),
        *(f"'WANDB_DIR': '{tmp_path / 'train' / 'tracking'}'", "'MLFLOW_TRACKING_URI': 'sqlite:///"),
    ):
        assert wanted in seen
    assert not any("artifact" in name.lower() for name, _ in told)
    assert dict(os.environ) == before


def test_a_continued_training_is_the_same_run_to_them_and_a_redo_another(
    told: list[tuple[str, str]], tmp_path: Path
) -> None:
    trained(tmp_path / "train", ("wandb",))
    trained(tmp_path / "train", ("wandb",))
    trained(tmp_path / "redo" / "train", ("wandb",))
    ids = [text.split("'WANDB_RUN_ID': '")[1][:8] for text in of(told, "environment")]
    assert ids[0] == ids[1] != ids[2]


def test_they_are_closed_when_training_ends_also_by_an_error(told: list[tuple[str, str]], tmp_path: Path) -> None:
    def fails() -> None:
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="CUDA"):
        trained(tmp_path / "train", act=fails)
    assert len(of(told, "wandb.finish")) == len(of(told, "mlflow.end_run")) == 1
    assert len(of(told, "trackio.finish")) == len(of(told, "tensorboard.SummaryWriter().close")) == 1


@pytest.mark.slow
def test_a_whole_training_reports_and_results_stay_the_same(
    told: list[tuple[str, str]], base: Base, prepare_dir: Path, tmp_path: Path
) -> None:
    for name in ("plain", "told"):
        (tmp_path / name).mkdir()
    fit(base, prepare_dir, tmp_path / "plain" / "train", max_steps=2)
    fit(base, prepare_dir, tmp_path / "told" / "train", max_steps=2, report_to=["wandb", "mlflow"])
    plain, reported = (losses(tmp_path / name / "train", "loss") for name in ("plain", "told"))
    assert reported == plain
    logged = [text for text in of(told, "wandb.log") if "train/loss" in text]
    assert [round(float(text.split("'train/loss': ")[1].split(",")[0]), 4) for text in logged] == [
        round(loss, 4) for loss in plain.values()
    ]
    assert [text for _, text in told if "사과" in text or TOKEN in text.replace(repr(TOKEN), "")] == []
    assert not [name for name, _ in told if name.startswith(("trackio", "tensorboard"))]


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_one_that_fails_is_given_up_with_a_warning(
    broken: str, told: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import wandb

    def fails(*_: Any, **__: Any) -> None:
        raise ConnectionError(f"cannot reach https://me:pw@host/?token={TOKEN}")

    monkeypatch.setattr(wandb, broken, fails, raising=False)
    trained(tmp_path / "train", ("wandb", "trackio"))
    said = capsys.readouterr().err
    assert said.count("wandb: given up, training goes on: ConnectionError: cannot reach https://…") == 1
    assert TOKEN not in said
    assert len(of(told, "trackio.log")) == 2


# --- what check says of them


def findings(names: Any, **environ: str) -> list[tuple[str, str, str]]:
    found = trackers.findings(TrainSection(report_to=names), environ)
    return [(finding.what, finding.verdict, finding.found) for finding in found]


def test_none_is_named_by_default() -> None:
    recipe = resolve.load("demo", environ={}).recipe
    assert trackers.named(recipe.train) == []
    assert findings("none") == []
    assert rehearse.SETTINGS["train"]["report_to"] == "none"


@pytest.mark.parametrize("text", ["[wandb, trackio, wandb]", "wandb"])
def test_one_or_several_are_named_by_a_variable(text: str) -> None:
    train = resolve.load("demo", environ={"APPLIANCE_TRAIN__REPORT_TO": text}).recipe.train
    assert trackers.named(train) == (["wandb", "trackio"] if "[" in text else ["wandb"])


def test_a_missing_package_is_refused_with_how_to_install_it() -> None:
    (finding,) = trackers.findings(TrainSection(report_to="trackio"), {})
    assert (finding.verdict, finding.fix) == ("fails", "pip install trackio")


@pytest.mark.usefixtures("told")
def test_check_says_where_metrics_go_and_shows_no_value() -> None:
    here = "on this machine, in train/tracking"
    assert findings(list(NAMES), WANDB_MODE="offline") == [
        ("report_to tensorboard", "ok", here),
        ("report_to trackio", "ok", "on this machine, in trackio's own folder"),
        ("report_to wandb", "ok", here),
        ("report_to mlflow", "ok", here),
    ]
    elsewhere = findings(["mlflow", "trackio"], MLFLOW_TRACKING_URI=f"https://u:{TOKEN}@h", TRACKIO_SPACE_ID="me/x")
    assert [found for _, _, found in elsewhere] == ["where MLFLOW_TRACKING_URI says", "where TRACKIO_SPACE_ID says"]


@pytest.mark.usefixtures("told")
def test_wandb_without_a_key_is_refused_before_it_would_ask_for_one(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123456789\n", encoding="utf-8")
    assert findings("wandb", NETRC=str(tmp_path / "none"))[0][1] == "fails"
    assert findings("wandb", NETRC=str(tmp_path / "netrc"))[0][1] == "ok"
    assert findings("wandb", NETRC=str(tmp_path / "netrc"), WANDB_BASE_URL="https://wandb.example")[0][1] == "fails"
    assert findings("wandb", NETRC=str(tmp_path / "none"), WANDB_API_KEY="0123456789")[0][1] == "ok"
