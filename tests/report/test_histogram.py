"""Histograms: which rows fall into which bin, the limit, and runs that have no lengths."""

from __future__ import annotations

import math
import re
from array import array
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import RunDirError
from appliance.report import facts, histogram, page
from appliance.training import kept_ids
from tests.helpers.shown_run import ROWS, shown_run


def lengths(limit: int, **sides: list[int]) -> histogram.Histogram:
    found = histogram.of_lengths(sides, limit)
    assert found is not None
    return found


def test_rows_are_counted_by_their_length() -> None:
    found = lengths(128, train=[9, 10, 19, 128], val=[], test=[130])
    assert [panel.name for panel in found.panels] == ["train", "test"]
    assert found.table == [
        ("0 to 9", (1, 0)),
        ("10 to 19", (2, 0)),
        ("120 to 129", (1, 0)),
        ("130 to 139", (0, 1)),
    ]
    assert found.panels[0].described == "4 rows, 9 to 128 tokens, median 14"
    assert found.panels[0].mark == pytest.approx(100 * 128 / 140, abs=0.01)
    assert found.mark == "max_seq_length: 128"
    first = found.panels[0].d.split("M")[1]
    assert first == "1 1000V500H142V1000"  # 1 of the 2 that the axis holds


def test_a_limit_far_above_the_rows_is_named_and_not_drawn() -> None:
    found = lengths(2048, train=[40, 71])
    assert [panel.mark for panel in found.panels] == [None]
    assert found.notes == ("max_seq_length, 2,048, is beyond the right edge.",)
    assert found.bins[-1].endswith("to 74")


def test_rows_far_above_the_limit_are_counted_beside_it() -> None:
    found = lengths(100, train=[10, 150, 200, 90_000])
    assert found.notes == ("1 row is longer than 200 tokens and not drawn.",)
    assert sum(found.panels[0].counts) == 3
    assert found.panels[0].described.startswith("4 rows, 10 to 90,000 tokens")


def test_short_rows_have_bins_of_one_token() -> None:
    assert lengths(8, train=[1, 1, 3]).table == [("1", (2,)), ("3", (1,))]
    assert histogram.of_lengths({"train": []}, 8) is None


def test_scores_are_counted_by_model_on_one_axis() -> None:
    found = histogram.of_scores("F1", {"base": [0.0, 0.04, 0.5], "tuned": [1.0, 1.0, math.nan]})
    assert found is not None
    assert found.table == [
        ("0 % to below 5 %", (2, 0)),
        ("50 % to below 55 %", (1, 0)),
        ("95 % to 100 %", (0, 2)),
    ]
    assert [panel.described for panel in found.panels] == ["mean 18.0% of 3 rows", "mean 100.0% of 2 rows"]
    assert len({panel.y_ticks for panel in found.panels}) == 1
    assert histogram.of_scores("F1", {"base": [math.nan], "tuned": [1.0]}) is None


def kept(csv_path: Path, rows: list[list[int]]) -> None:
    csv_path.write_text("row,instruction,input,output\n", encoding="utf-8")
    spool = kept_ids.Spool(csv_path.parent)
    for ids in rows:
        spool.append(array("i", ids))
        spool.count(len(ids))
    spool.write(csv_path, range(len(rows)), range(len(rows)), [1] * len(rows), "")
    spool.close()


def test_the_lengths_of_kept_ids(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    assert kept_ids.lengths(path) is None
    kept(path, [[5] * 3, [], [7] * 200])
    assert kept_ids.lengths(path) == [3, 0, 200]
    kept(path, [[1]] * 3000)  # more than one batch
    assert kept_ids.lengths(path) == [1] * 3000


def test_kept_ids_that_are_damaged_are_named(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    kept(path, [[5] * 300] * 20)
    arrow = kept_ids.beside(path)
    whole = arrow.read_bytes()
    offset = whole.index((300).to_bytes(4, "little") + (600).to_bytes(4, "little"))
    backwards = whole[:offset] + (2**31 + 5).to_bytes(4, "little") + whole[offset + 4 :]
    for damage in (
        backwards,
        b"",
        whole[:40],
        whole[:-9],
        whole[: len(whole) // 2],
        b"x" * 5000,
        whole[:8] + b"\xff" * 900,
    ):
        arrow.write_bytes(damage)
        with pytest.raises(RunDirError, match=r"train_ids\.arrow is damaged"):
            kept_ids.lengths(path)


def test_the_page_shows_both_and_leaves_out_what_a_run_lacks(tmp_path: Path) -> None:
    run = shown_run(tmp_path / "run")
    html = page.write_html(run).read_text(encoding="utf-8")
    assert "Row lengths" not in html
    assert "F1 of each test row, tuned" in html
    for side in ("train", "val", "test"):
        kept(run / "prepare" / f"{side}.csv", [[1] * 40, [1] * 90])
    html = page.write_html(run).read_text(encoding="utf-8")
    assert "max_seq_length: 128" in html
    assert html.count("2 rows, 40 to 90 tokens, median 65") == 6  # each shown, and described for who can't see it


@pytest.mark.parametrize(("primary", "title"), [("f1", "F1"), ("exact_match", "F1"), ("chrf", "chrF")])
def test_the_rows_are_judged_by_a_metric_that_has_degrees(primary: str, title: str, tmp_path: Path) -> None:
    found: Any = facts.of(shown_run(tmp_path / "run", primary=primary))["score_rows"]
    assert found.title == f"{title} of each test row"
    assert [sum(panel.counts) for panel in found.panels] == [len(ROWS)] * 2
    assert re.fullmatch(r"mean \d+\.\d% of 6 rows", found.panels[0].described)
