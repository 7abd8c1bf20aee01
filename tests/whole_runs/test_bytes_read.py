"""How often a run reads the weights of its base and of its merged model, and that it hashes each file once.

`python -m benchmarks.reads` counts the same on a base of 200 MB, with all that goes through file descriptors.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from appliance.pipeline import run as pipeline_run
from appliance.process import known_hashes
from appliance.recipe import resolve
from appliance.rundir.directory import RunDir
from appliance.weights import proof
from benchmarks import reads
from tests.helpers import warm

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reads")


@pytest.fixture(scope="module")
def counts(folder: Path) -> dict[str, Counter[str]]:
    """What a run in `folder` read of the base and of the merged model, in units of its size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_hashes, "LARGE_BYTES", 1000)  # the tiny base's files are below a megabyte
        patch.setattr(proof, "subprocess", warm)
        return reads.count(folder, hidden=64, layers=2)


def test_what_is_read_of_the_base(counts: dict[str, Counter[str]]) -> None:
    """`evaluate` has what `train` loaded; `check` looks at embeddings alone, through a file descriptor."""
    assert counts["base hashed"] == {"check": pytest.approx(1.0)}
    loaded = counts["base loaded"]
    assert loaded.keys() == {"train", "merge"}
    assert loaded["train"] == pytest.approx(1.0, abs=0.02)
    assert loaded["merge"] == pytest.approx(2.0, abs=0.05)  # merge; base + adapter, which the proof compares with


def test_what_is_read_of_the_merged_model(counts: dict[str, Counter[str]]) -> None:
    """It is hashed while it is written; the proof compares its files in one process and loads them in the other."""
    assert counts["merged hashed"] == {}
    assert counts["merged loaded"] == {"merge": pytest.approx(2.0, abs=0.02)}


@pytest.mark.usefixtures("counts")
def test_the_base_in_memory_gives_the_results_of_one_that_is_loaded(folder: Path) -> None:
    """To the last bit: a run that goes straight on from training, and one that is continued after it."""
    names = ("metrics.json", "measures.json", "predictions.csv", "proof_rows.json")
    run_dir = RunDir(folder / "runs" / "shop")
    before = {name: (run_dir.stage_dir("evaluate") / name).read_bytes() for name in names}
    resolved = resolve.load(str(folder / "shop.yaml"), overrides=(), environ={})
    pipeline_run.run(resolved, run_dir, folder / "cache", redo="evaluate", until="evaluate")
    assert {name: (run_dir.stage_dir("evaluate") / name).read_bytes() for name in names} == before
