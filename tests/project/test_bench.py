"""The benchmarks of whole processes: what they count, and that the rows they are given are those they name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from appliance.prompt import format as prompt_format
from benchmarks import measured, merge_bound, rows, rows_part
from tests.conftest import read_csv


def test_the_rows_are_the_same_every_time_and_some_repeat(tmp_path: Path) -> None:
    made = read_csv(rows.write_csv(tmp_path / "a.csv", 300))
    again = read_csv(rows.write_csv(tmp_path / "b.csv", 300))
    assert made == again
    assert len(made) == 300
    assert 280 < len({row["instruction"] for row in made}) < 300
    assert all(len(row["output"].split()) == 20 for row in made)


def test_the_floor_tokenizes_what_prepare_does(tmp_path: Path, base_dir: Path) -> None:
    prompt = prompt_format.from_folder("alpaca", base_dir)
    before, after = rows_part.around(prompt)
    assert prompt.texts("가격은?", "", "만 원") == (f"{before}가격은?{after}", "만 원")
    csv_path = rows.write_csv(tmp_path / "rows.csv", 40)
    rows_part.floor(csv_path, prompt, tmp_path)
    rows_part.prepare(csv_path, prompt, tmp_path)
    assert list(tmp_path.iterdir()) == [csv_path]


def test_a_cost_counts_children_and_a_failure_ends_the_measurement(capfd: pytest.CaptureFixture[str]) -> None:
    busy = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(3_000_000))'])"
    found = measured.costs({"busy": [sys.executable, "-c", busy], "idle": [sys.executable, "-c", ""]}, 3)
    assert found["busy"].cpu > 1.5 * found["idle"].cpu
    assert found["idle"].least_cpu <= found["idle"].cpu <= found["idle"].most_cpu
    assert 5 < found["idle"].mib < 2000
    assert capfd.readouterr().err.count("busy: wall") == 3
    with pytest.raises(SystemExit, match="ended with 3"):
        measured.costs({"bad": [sys.executable, "-c", "raise SystemExit(3)"]}, 1)


def test_what_a_copy_costs_at_least_is_measured_on_whole_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    fsync = merge_bound.files.fsync
    monkeypatch.setattr(merge_bound.files, "fsync", lambda path: (sizes.append(path.stat().st_size), fsync(path)))
    merge_bound.main(2, size=3 << 20)
    assert sizes == [3 << 20] * 6  # twice copied, written, and read, hashed and written
    names = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert names[:4] == ["copy", "sha256", "write from memory", "read, hash and write, one thread"]
