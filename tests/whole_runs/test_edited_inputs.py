"""A file that was edited after its stage had finished is refused by every stage that reads it, whatever its size.

`test_pipeline.py` runs the stages themselves and compares what they open with the table of pipeline/reads.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.errors import RunDirError
from appliance.pipeline import publish_rows, reads
from appliance.rundir.directory import RunDir
from tests.helpers.finished import finished_run
from tests.helpers.spoilers import one_byte

pytestmark = pytest.mark.slow

SIDES = ("prepare/train.csv", "prepare/val.csv", "prepare/test.csv")
ADAPTER = ("train/adapter/adapter_model.safetensors",)
TRAINED = tuple(f"train/adapter/{name}" for name in ("adapter_config.json", "tokenizer.json", "prompt.json"))
READ = {
    "rehearse": (*SIDES, "prepare/summary.json"),
    "train": (*SIDES[:2], "prepare/summary.json"),
    "evaluate": (*SIDES, *ADAPTER, *TRAINED, "train/fit.json"),
    "merge": (*ADAPTER, *TRAINED, "evaluate/proof_rows.json"),
    "publish": (
        *(*SIDES, "prepare/summary.json", *TRAINED, "train/fit.json", "train/gates.json"),
        *(f"evaluate/{name}" for name in ("metrics.json", "measures.json", "predictions.csv", "proof_rows.json")),
        *("merge/proof.json", "merge/model/config.json", "merge/model/tokenizer.json"),
    ),
    reads.ROWS: (*SIDES, "prepare/summary.json"),
}
PAIRS = [(stage, name) for stage, names in READ.items() for name in names]


@pytest.fixture(scope="module")
def finished(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("edited") / "run", base_dir).path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may edit."""
    return shutil.copytree(finished, tmp_path / "run")


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def removed(path: Path) -> None:
    path.unlink()


def refused(run: Path, stage: str, name: str) -> str:
    """The message."""
    with pytest.raises(RunDirError) as caught:
        reads.refuse_changed(RunDir(run), stage)
    assert str(caught.value).startswith(f"{run / name} ")
    assert f"--redo {name.partition('/')[0]}" in caught.value.hint
    assert caught.value.exit_code == 8
    return str(caught.value)


@pytest.mark.parametrize(("stage", "name"), PAIRS)
def test_a_byte_that_was_changed_is_refused(stage: str, name: str, run: Path) -> None:
    reads.refuse_changed(RunDir(run), stage)
    one_byte(run / name)
    assert "was changed: its sha256 is " in refused(run, stage, name)


@pytest.mark.parametrize(("edit", "told"), [(shortened, "bytes; its stage left"), (removed, "is gone")])
@pytest.mark.parametrize("name", ["prepare/test.csv", "train/adapter/adapter_model.safetensors", "train/fit.json"])
def test_a_file_cut_short_or_gone_is_refused(edit: Callable[[Path], None], told: str, name: str, run: Path) -> None:
    edit(run / name)
    assert told in refused(run, "evaluate", name)


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("publish", "evaluate/extra_answers.csv"),  # the card would show it
        ("publish", "merge/model/model-00002-of-00002.safetensors"),  # it would be released
        ("evaluate", "train/adapter/special_tokens_map.json"),  # the tokenizer would be another
    ],
)
def test_a_file_that_was_added_is_refused(stage: str, name: str, run: Path) -> None:
    (run / name).write_text("{}", encoding="utf-8")
    assert "was added after its stage had finished" in refused(run, stage, name)


def test_what_a_stage_does_not_read_does_not_stop_it(run: Path) -> None:
    for name in (*SIDES, "train/fit.json", "evaluate/metrics.json"):
        one_byte(run / name)
    (run / "train" / "adapter" / ".DS_Store").write_bytes(b"a file manager's")
    (run / "evaluate" / "notes.txt").write_text("the user's own", encoding="utf-8")
    reads.refuse_changed(RunDir(run), "merge")


def test_before_anything_runs_all_but_the_weights_are_compared(run: Path) -> None:
    """What only a later stage reads is refused before an earlier one takes hours. A stage that is redone is exempt."""
    todo, done = ["train", "evaluate", "merge", "publish"], ["check", "prepare"]
    one_byte(run / "train" / "fit.json")
    reads.refuse_changed_early(RunDir(run), todo, done)
    one_byte(run / "prepare" / "test.csv")
    with pytest.raises(RunDirError, match=r"test\.csv was changed"):
        reads.refuse_changed_early(RunDir(run), todo, done)


def test_weights_are_read_once(run: Path) -> None:
    """Before a release by its gates, else by the stage that loads them: hashing 16 GB takes its time."""
    one_byte(run / "train" / "adapter" / "adapter_model.safetensors")
    one_byte(run / "merge" / "model" / "model.safetensors")
    reads.refuse_changed(RunDir(run), "publish")
    reads.refuse_changed_early(RunDir(run), ["evaluate", "merge"], ["prepare", "train"])


def test_rows_that_were_edited_are_not_uploaded(run: Path) -> None:
    one_byte(run / "prepare" / "val.csv")
    with pytest.raises(RunDirError, match=r"val\.csv was changed"):
        publish_rows.upload_rows(
            name="shop", repo_id="me/rows", visibility="private", run_path=run, folder=run / "dataset", again=""
        )
    assert not (run / "dataset").exists()


def test_a_stage_that_is_not_done_has_left_nothing_to_read(run: Path) -> None:
    (run / "evaluate" / "stage.json").unlink()
    with pytest.raises(RunDirError, match="evaluate is not done") as caught:
        reads.refuse_changed(RunDir(run), "merge")
    assert f"`appliance evaluate {run}`" in caught.value.hint
