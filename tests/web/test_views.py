"""What a watched page holds: the report, how far the run is and its log; whatever state its files are in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from appliance.report import page
from appliance.rundir.directory import RunDir
from appliance.web import app, door, progress, views, watched
from tests.helpers.shown_run import shown_run, table
from tests.helpers.watching import Growing, append


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in the middle of its training; no process is at work there."""
    return Growing.begun(tmp_path / "runs" / "shop").path


def view(path: Path) -> views.View:
    return watched.run(path)()


def shown(path: Path) -> dict[str, str]:
    """Section -> its HTML."""
    return {one.id: str(one.html) for one in view(path).parts}


def test_a_run_that_trains_shows_how_far_it_is(run: Path) -> None:
    with RunDir(run).lock():
        parts = shown(run)
        assert view(run).title == "20/40 · shop"
    assert list(parts) == ["now", "outcome", "training", "rows", "stages", "recipe", "log"]
    assert "<b>Running</b>: train, step 20 of 40" in parts["now"]
    assert '<progress value="20" max="40"' in parts["now"]
    assert "0.2250" in parts["now"]
    assert "&lt;b&gt;우유&lt;/b&gt;?" in parts["training"]
    assert "모름" in parts["training"]
    assert "<mark>2</mark>" in parts["training"]
    assert "last \\x1b[31m&lt;script&gt;" in parts["log"]


def test_a_run_that_was_killed_is_stopped(run: Path) -> None:
    """Its lock is not held; nobody has recorded an end."""
    parts = shown(run)
    assert "<b>Stopped</b>: train, step 20 of 40" in parts["now"]
    assert "left at most" not in parts["now"]
    assert "No process is at work here" in parts["now"]
    assert view(run).title == "stopped · shop"


def test_a_finished_run_is_its_report(tmp_path: Path) -> None:
    path = shown_run(tmp_path / "shop")
    with_report = page.write_html(path).read_text(encoding="utf-8")
    parts = shown(path)
    assert parts.pop("now")
    assert all(html in with_report for html in parts.values())


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": ' * 500, "\x00", '{"step": "x"}\n', '{"rows": 5}\n'])
def test_no_damaged_file_is_more_than_a_sentence(content: str, run: Path) -> None:
    """Each file of a run in turn, cut off or of another shape: named or shown, never an exception."""
    names = [path for path in run.rglob("*") if path.is_file()]
    assert len(names) > 8
    client = TestClient(app.create(app.Site(run.parent), door.Door(None)), base_url="http://127.0.0.1")
    for path in names:
        before = path.read_bytes()
        path.write_text(content, encoding="utf-8")
        assert shown(run)["now"]
        assert client.get("/runs/shop").status_code == 200
        assert client.get("/").status_code == 200
        path.write_bytes(before)
    assert "problem" not in shown(run)


def test_a_fault_is_named_and_gone_once_the_file_is_whole(run: Path) -> None:
    path = run / "prepare" / "summary.json"
    before, look = path.read_bytes(), watched.run(run)
    path.write_text("{", encoding="utf-8")
    problem = {one.id: str(one.html) for one in look().parts}["problem"]
    assert "summary.json" in problem
    assert "--redo prepare" in problem
    path.write_bytes(before)
    assert "problem" not in {one.id for one in look().parts}


def test_a_report_is_made_again_only_if_a_file_of_it_has_changed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    report_of = views.report_of
    monkeypatch.setattr(views, "report_of", lambda path: (made.append(path), report_of(path))[1])
    look = watched.run(run)
    first = look()
    assert look() == first
    append(run / "appliance.log", "more\n")
    second = look()
    assert len(made) == 1
    assert [name for name in second.hashes if second.hashes[name] != first.hashes[name]] == ["log"]
    append(run / "train" / "metrics.jsonl", '{"step": 21, "loss": 0.1}\n')
    third = look()
    assert len(made) == 2
    assert {name for name in third.hashes if third.hashes[name] != second.hashes[name]} == {"now", "training"}


def steps(*times: float, first: int = 1) -> list[dict[str, Any]]:
    return [{"step": first + i, "loss": 1.0, "seconds": at} for i, at in enumerate(times)]


def test_the_time_left_follows_from_the_steps_of_this_process() -> None:
    """With its evaluations; what an earlier process did says nothing."""
    assert progress.seconds_left(steps(10, 12, 14), 0, 13, since=0) == pytest.approx(20)
    assert progress.seconds_left(steps(10, 12, 14), 0, 13, since=6) == pytest.approx(14)
    assert progress.seconds_left(steps(10, 20, 1, 5, 9), 2, 8, since=0) == pytest.approx(12)
    evaluated = [*steps(10, 12), {"step": 2, "val_loss": 1.0, "seconds": 18}, *steps(20, first=3)]
    assert progress.seconds_left(evaluated, 0, 5, since=0) == pytest.approx(10)


@pytest.mark.parametrize(
    ("lines", "began_with", "since"),
    [
        ([], 0, 0), (steps(1, 2), 0, 0), (steps(1, 2, 3, 4), 2, 0),
        ([{"step": i, "loss": 1.0} for i in range(9)], 0, 0),  # of an earlier version
        (steps(1, 2, 3), 0, 500),  # it should have ended long ago
        (steps(1, 1, float("inf")), 0, 0),
    ],
)  # fmt: skip
def test_no_time_left_is_better_than_a_wrong_one(lines: list[dict[str, Any]], began_with: int, since: float) -> None:
    assert progress.seconds_left(lines, began_with, 10, since) is None


def test_the_log_is_read_from_its_end(run: Path) -> None:
    path = run / "appliance.log"
    path.write_bytes(b"".join(b"line %d\n" % i for i in range(30_000)) + b"\xff half \xea\xb0")
    lines = progress.log_tail(run).split("\n")
    assert len(lines) == progress.LOG_LINES
    assert lines[-2] == "line 29999"
    assert all(line.startswith("line ") for line in lines[:-1])
    path.unlink()
    assert progress.log_tail(run) == ""


def test_the_list_links_every_run_and_only_addresses_are_links(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("가게 1", "b&b", "c"):
        shown_run(runs / name)
    hub = {"uploaded": True, "message": "", "gates": []}
    places = ("https://hub.example/me/shop/commit/1", "javascript:alert(1)/commit/1")
    for name, place in zip(("가게 1", "c"), places, strict=True):
        one = {"model": {"commit_url": place, "visibility": "private", "repo_id": "me/shop"}}
        (runs / name / "publish" / "hub.json").write_text(json.dumps(hub | {"repositories": one}), encoding="utf-8")
    (part,) = views.of_runs(runs).parts
    html = str(part.html)
    for link in ("/runs/%EA%B0%80%EA%B2%8C%201", "/runs/b%26b", "/runs/c", "https://hub.example/me/shop"):
        assert f'href="{link}"' in html
    assert 'href="javascript' not in html
    assert "better, with 1 caution" in html
    (empty,) = views.of_runs(tmp_path / "none").parts
    assert "appliance demo" in empty.html


def test_no_more_streams_than_there_is_memory_for(run: Path) -> None:
    site = app.Site(run.parent, streams=app.MOST_STREAMS)
    answer = TestClient(app.create(site, door.Door(None)), base_url="http://127.0.0.1").get("/runs/shop/events")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")


def test_one_run_alone_has_no_list(run: Path) -> None:
    shown_run(run.parent / "other")
    client = TestClient(app.create(app.Site(None, run), door.Door(None)), base_url="http://127.0.0.1")
    assert client.get("/").url.path == "/runs/shop"
    assert "All runs" not in client.get("/runs/shop").text
    for path in ("/runs/other", "/events", "/runs/other/events"):
        assert client.get(path).status_code == 404


def test_a_table_with_hostile_cells_stays_text(run: Path) -> None:
    table(run / "prepare" / "rows.csv", ("row", "side", "reason"), [("3", "rejected", "<script>alert(1)</script>")])
    text = "".join(shown(run).values())
    assert "<script>alert" not in text
