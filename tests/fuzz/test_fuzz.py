"""40 cases of every kind of damage, always the same ones; and that the fuzzer sees what it looks for.

`make test-faults` does 500 of each, with another seed every time.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.rows import survey
from tests.fuzz import forks, fuzzer, targets
from tests.fuzz.fuzzer import Fuzzer
from tests.fuzz.targets import TARGETS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CASES, SEED = 40, 1


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    forks.load()
    with fuzzer.opened(tmp_path_factory.mktemp("fuzz")) as fuzz:
        yield fuzz


@pytest.mark.parametrize("target", TARGETS)
def test_no_damage_ends_in_anything_but_a_result_or_a_clear_refusal(fuzz: Fuzzer, target: str) -> None:
    fuzz.failures.clear()
    fuzz.run(target, CASES, SEED)
    assert fuzz.failures == [], fuzz.table()
    assert len([code for name, code in fuzz.codes if name == target]) > 1  # some pass, some are refused


# --- what it sees


def _raises() -> None:
    raise RuntimeError("a bug")


def _ends_otherwise() -> None:
    os._exit(9)


def _writes_elsewhere() -> None:
    (Path.home() / "cache.txt").write_text("x", encoding="utf-8")


def _overwrites() -> None:
    path = Path.home() / "victim.txt"
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")


def _leaves_a_temporary_file() -> None:
    Path(os.environ["TMPDIR"], "left").touch()


def _prints_the_token() -> None:
    os.write(1, os.environ["HF_TOKEN"].encode())  # past the stream that masks it


def _stores_the_token() -> None:
    Path("cache").mkdir(exist_ok=True)
    Path("cache/log").write_text(f"x{os.environ['HF_TOKEN']}", encoding="utf-8")


def _leaves_a_process() -> None:
    subprocess.Popen(["sleep", "60"], start_new_session=True)


def _takes_too_long() -> None:
    time.sleep(60)


@pytest.mark.parametrize(
    ("does", "seen"),
    [
        (_raises, "'Traceback (most recent call last)' was printed"),
        (_raises, "exit code 1"),
        (_ends_otherwise, "exit code 9"),
        (_writes_elsewhere, "touched victim/a/b/c/place/home/cache.txt"),
        (_overwrites, "touched victim/a/b/c/place/home/victim.txt"),
        (_leaves_a_temporary_file, "touched victim/a/b/c/place/tmp/left"),
        (_prints_the_token, "the token is in stdout"),
        (_stores_the_token, "the token is in work/cache/log"),
        (_leaves_a_process, "sleep 60 was left"),
        (_takes_too_long, "took "),
    ],
)
def test_a_command_that_does_wrong_is_seen(
    fuzz: Fuzzer, monkeypatch: pytest.MonkeyPatch, does: Callable[[], None], seen: str
) -> None:
    of_csv = survey.of_csv

    def wrong(*given: object) -> object:
        does()
        return of_csv(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(survey, "of_csv", wrong)
    monkeypatch.setattr(forks, "GRACE_SECONDS", 0.3)
    monkeypatch.setitem(TARGETS, "csv", targets.Target(_check_csv, TARGETS["csv"].needs, seconds=1.5))
    assert any(seen in one for one in fuzz.case("csv", 1)), fuzz.failures
    assert "python -m tests.fuzz 1 1 --only csv" in fuzz.failures[-1]


def _check_csv(*_: object) -> targets.Case:
    return targets.Case("nothing", ["check", "train.csv"])


def test_a_case_is_the_same_each_time(fuzz: Fuzzer) -> None:
    seen = []
    for _ in range(2):
        fuzz.world.place.make(fuzz.world.template, TARGETS["csv"].needs)
        case = targets.csv(fuzzer.generator("csv", 7), fuzz.world, 7)
        seen.append((case.what, case.arguments, (fuzz.world.place.work / "train.csv").read_bytes()))
    assert seen[0] == seen[1]
