"""How often a run reads the weights of its base and of its merged model, and that it hashes each file once.

`python -m benchmarks.reads` counts the same on a base of 200 MB, with all that goes through file descriptors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from appliance.machine import device as machine_device
from appliance.pipeline import run as pipeline_run
from appliance.pipeline.training_setup import Training
from appliance.process import known_hashes
from appliance.recipe import resolve
from appliance.rundir.directory import RunDir
from appliance.training.micro_batch import BatchSize
from appliance.weights import proof
from benchmarks import reads
from tests.helpers import warm

pytestmark = pytest.mark.slow
ROWS_COMPARED = 0.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reads")


@pytest.fixture(scope="module")
def patched() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_hashes, "LARGE_BYTES", 1000)  # the tiny base's files are below a megabyte
        patch.setattr(proof, "subprocess", warm)
        yield


@pytest.fixture(scope="module")
def counts(folder: Path, patched: None) -> dict[str, Counter[str]]:  # noqa: ARG001
    """What a run in `folder` read and wrote, in units of the size of the base's weights."""
    return reads.count(folder, hidden=64, layers=2)


def test_what_is_read_of_the_base(counts: dict[str, Counter[str]]) -> None:
    """`evaluate` and the merge have what `train` loaded; `check` looks at embeddings alone, through a descriptor."""
    assert counts["base hashed"] == {"check": pytest.approx(1.0)}
    loaded = counts["base loaded"]
    assert loaded.keys() == {"train", "merge"}
    assert loaded["train"] == pytest.approx(1.0, abs=0.02)
    # base + adapter, which the proof compares with; and a few rows of each tensor, which here has few
    assert 1.0 <= loaded["merge"] <= 1.0 + ROWS_COMPARED


@pytest.mark.usefixtures("patched")
def test_what_a_rehearsal_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is read by its proof; what its training has loaded, the run trains on, with as much room as it had."""
    rooms, first_size = [], Training.first_size

    def seen(task: Training, lengths: Sequence[int], room: int) -> BatchSize:
        rooms.append(room)
        return first_size(task, lengths, room)

    monkeypatch.setattr(Training, "first_size", seen)
    monkeypatch.setattr(machine_device, "room_bytes", lambda _: 8 << 30)
    counts = reads.count(tmp_path, hidden=64, layers=2, overrides=["rehearse=always"])
    kept = 2 * sum(path.stat().st_size for path in (tmp_path / "base").glob("*.safetensors"))  # in float32
    assert [room - (8 << 30) for room in rooms] == [0, *[pytest.approx(kept, rel=0.05)] * 2]
    assert counts["base hashed"] == {"check": pytest.approx(1.0)}
    loaded = counts["base loaded"]
    assert loaded.keys() == {"rehearsal: train", "rehearsal: merge", "merge"}
    assert loaded["rehearsal: train"] == pytest.approx(1.0, abs=0.02)
    assert 1.0 <= loaded["rehearsal: merge"] == loaded["merge"] <= 1.0 + ROWS_COMPARED
    assert counts["merged hashed"] == {}


def test_what_is_read_and_written_of_the_merged_model(counts: dict[str, Counter[str]]) -> None:
    """Written once and hashed meanwhile; the proof compares its files in one process and loads them in the other."""
    assert counts["merged hashed"] == {}
    assert counts["merged loaded"] == {"merge": pytest.approx(2.0, abs=0.02)}
    assert counts["merged written"] == {"merge": pytest.approx(1.0, abs=0.02)}


@pytest.mark.usefixtures("counts")
def test_the_base_in_memory_gives_the_results_of_one_that_is_loaded(folder: Path) -> None:
    """To the last bit: a run that goes straight on from training, and one that is continued after it."""
    names = ("metrics.json", "measures.json", "predictions.csv", "proof_rows.json")
    run_dir = RunDir(folder / "runs" / "shop")
    before = {name: (run_dir.stage_dir("evaluate") / name).read_bytes() for name in names}
    resolved = resolve.load(str(folder / "shop.yaml"), overrides=(), environ={})
    pipeline_run.run(resolved, run_dir, folder / "cache", redo="evaluate", until="evaluate")
    assert {name: (run_dir.stage_dir("evaluate") / name).read_bytes() for name in names} == before
