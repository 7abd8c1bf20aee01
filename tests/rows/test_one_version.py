"""A CSV that changes while it is read is refused, however and whenever: rows of two versions are never kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.errors import DataError
from appliance.pipeline import prepare
from appliance.process import files
from appliance.prompt import fixed_start
from appliance.recipe.fields import DataSection
from appliance.rows import csv_file, leaks, survey
from tests.conftest import write_qa

ROWS = [(f"질문 {i}? " + "가나다라 " * 200, f"답 {i}") for i in range(120)]
COMPLETE = "run the same command again once the file is complete"
DECODED = 1 << 13  # bytes that io.TextIOWrapper takes at a time


def appended(path: Path) -> None:
    with path.open("a", encoding="utf-8") as handle:
        handle.write("새 질문?,새 답\n")


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


def replaced(path: Path) -> None:
    """As editors and downloads do it: the same size and time, another file."""
    seen, other = path.stat(), path.with_name("other")
    other.write_bytes(path.read_bytes().replace(b" 1", b" 7"))
    os.utime(other, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    other.replace(path)


def rewritten(path: Path) -> None:
    """In place, with the same size: rows that were read already, and rows that are still to be read."""
    text = path.read_bytes().replace("답 1".encode(), "답 7".encode())
    with path.open("r+b") as handle:
        handle.write(text)
    seen = path.stat()
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns + 1))  # the clock of a file system may be that coarse


def rewritten_and_dated_back(path: Path) -> None:
    """In place, with the same size and time: only the bytes differ."""
    seen = path.stat()
    rewritten(path)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def removed(path: Path) -> None:
    path.unlink()


CHANGES = {
    appended: "bytes and now has",
    truncated: "bytes and now has",
    replaced: "another file was put in its place",
    rewritten: "its modification time changed",
    rewritten_and_dated_back: "sha256",
    removed: "it is gone",
}
changes = pytest.mark.parametrize(("change", "seen"), CHANGES.items(), ids=[change.__name__ for change in CHANGES])


class Bytes:
    """A tokenizer of bytes, as far as prepare asks for one."""

    fingerprint = "bytes"
    marks_spans = False
    starts = (fixed_start.NONE, fixed_start.NONE)
    command_ids = frozenset[int]()
    eos_token_id = 256

    def texts(self, instruction: str, input_text: str, output: str) -> tuple[str, str]:
        return instruction + input_text, output

    @property
    def backend(self) -> Bytes:
        return self

    def encode_batch_fast(self, texts: list[str], **_: Any) -> list[SimpleNamespace]:
        return [SimpleNamespace(ids=list(text.encode())) for text in texts]


@pytest.fixture
def csv_path(tmp_path: Path) -> Path:
    path = write_qa(tmp_path / "rows.csv", ROWS)
    assert path.stat().st_size > 30 * DECODED
    return path


def run(csv_path: Path, sha256: str | None, **data: Any) -> Path:
    folder = csv_path.parent / "prepare"
    folder.mkdir(exist_ok=True)
    prepare.run(
        csv_path=csv_path,
        data=DataSection(csv=str(csv_path), **data),
        prompt=Bytes(),  # type: ignore[arg-type]
        max_seq_length=None,
        longest_possible=1 << 20,
        seed=7,
        stage_dir=folder,
        csv_sha256=sha256,
    )
    return folder


def in_pass(number: int, change: Callable[[Path], None], path: Path, patch: pytest.MonkeyPatch) -> None:
    """Changes the file once, after the third row of this pass over it."""
    read, begun = csv_file.read, iter(range(1, 100))

    def reading(*arguments: Any) -> Iterator[Any]:
        is_due = next(begun) == number
        for count, row in enumerate(read(*arguments)):
            if is_due and count == 3:
                change(path)
            yield row

    patch.setattr(csv_file, "read", reading)


@changes
@pytest.mark.parametrize("number", [1, 2])
def test_prepare_refuses_a_csv_that_changes_in_either_pass(
    number: int, change: Callable[[Path], None], seen: str, csv_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_pass(number, change, csv_path, monkeypatch)
    with pytest.raises(DataError, match=r"rows\.csv changed while it was being read: ") as caught:
        run(csv_path, files.sha256_of(csv_path))
    assert seen in str(caught.value)
    assert (caught.value.exit_code, caught.value.hint) == (3, COMPLETE)
    assert not (csv_path.parent / "prepare" / "summary.json").exists()


@pytest.mark.parametrize("change", CHANGES)
def test_prepare_refuses_another_csv_than_the_one_that_the_run_depends_on(
    change: Callable[[Path], None], csv_path: Path
) -> None:
    """Changed before prepare began, after the run had hashed it: a base is downloaded in between."""
    sha256 = files.sha256_of(csv_path)
    change(csv_path)
    told = "there is no file" if change is removed else f"sha256 .*{sha256[:12]}…"
    with pytest.raises(DataError, match=told):
        run(csv_path, sha256)


@changes
def test_the_survey_refuses_a_csv_that_changes(
    change: Callable[[Path], None], seen: str, csv_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_pass(1, change, csv_path, monkeypatch)
    with pytest.raises(DataError, match="changed while it was being read: ") as caught:
        survey.of_csv(csv_path, DataSection(csv=str(csv_path)), 7)
    assert seen in str(caught.value)
    assert caught.value.hint == COMPLETE


def test_a_change_between_the_format_and_the_rows_is_refused(csv_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sniff = survey.csv_format

    def then_changed(*arguments: Any, **options: Any) -> csv_file.CsvFormat:
        found = sniff(*arguments, **options)
        replaced(csv_path)
        return found

    monkeypatch.setattr(survey, "csv_format", then_changed)
    for read in (lambda: run(csv_path, None), lambda: survey.of_csv(csv_path, DataSection(csv=str(csv_path)), 7)):
        with pytest.raises(DataError, match="another file was put in its place"):
            read()


def test_what_half_a_file_seems_to_lack_is_not_what_is_reported(
    csv_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row cut in the middle is a bad row, and a line that a second pass misses a KeyError: both name the change."""
    in_pass(1, lambda path: os.truncate(path, 20 * DECODED), csv_path, monkeypatch)
    with pytest.raises(DataError, match="changed while it was being read") as caught:
        run(csv_path, None)
    assert "fields; the header has" in str(caught.value.__cause__)
    write_qa(csv_path, ROWS)
    monkeypatch.undo()
    shared = leaks.shared

    def then_cut(*arguments: Any, **more: Any) -> leaks.Shared:
        write_qa(csv_path, ROWS[:60])
        return shared(*arguments, **more)

    monkeypatch.setattr(leaks, "shared", then_cut)
    with pytest.raises(DataError, match="changed while it was being read"):
        run(csv_path, None, split="notebook")


def test_a_csv_that_stays_as_it_is_is_read(csv_path: Path) -> None:
    folder = run(csv_path, files.sha256_of(csv_path))
    assert sum(len(csv_file.read_canonical(folder / f"{side}.csv")) for side in ("train", "val", "test")) == len(ROWS)


def test_a_mistake_in_a_csv_that_stays_is_reported_as_ever(csv_path: Path) -> None:
    write_qa(csv_path, [*ROWS, ("질문?", "")])
    with pytest.raises(DataError, match="the answer is empty"):
        run(csv_path, files.sha256_of(csv_path))
    with pytest.raises(DataError, match="there is no file"):
        survey.of_csv(csv_path.with_name("none.csv"), DataSection(csv="none.csv"), 7)
