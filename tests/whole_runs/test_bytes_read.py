"""How often a run reads the weights of its base and of its merged model, and that it hashes each file once.

`python -m benchmarks.reads` counts the same on a base of 200 MB, with all that goes through file descriptors.
"""

from __future__ import annotations

from collections import Counter

import pytest

from appliance.process import known_hashes
from appliance.weights import proof
from benchmarks import reads
from tests.helpers import warm

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    """What was read of the base and of the merged model, in units of its size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_hashes, "LARGE_BYTES", 1000)  # the tiny base's files are below a megabyte
        patch.setattr(proof, "subprocess", warm)
        return reads.count(tmp_path_factory.mktemp("reads"), hidden=64, layers=2)


def test_what_is_read_of_the_base(counts: dict[str, Counter[str]]) -> None:
    """`check` looks at embeddings alone, a fifth of this tiny model."""
    assert counts["base hashed"] == {"check": pytest.approx(1.0)}
    loaded = counts["base loaded"]
    assert loaded.keys() == {"check", "train", "evaluate", "merge"}
    assert (loaded["train"], loaded["evaluate"]) == (pytest.approx(1.0, abs=0.02), pytest.approx(1.0, abs=0.02))
    assert loaded["merge"] == pytest.approx(2.0, abs=0.05)  # merge; base + adapter, which the proof compares with


def test_what_is_read_of_the_merged_model(counts: dict[str, Counter[str]]) -> None:
    """It is hashed while it is written; the proof compares its files in one process and loads them in the other."""
    assert counts["merged hashed"] == {}
    assert counts["merged loaded"] == {"merge": pytest.approx(2.0, abs=0.02)}
