"""feedback.csv: what is appended is read back exactly, survives a kill, and is no formula to a spreadsheet."""

from __future__ import annotations

import csv
import fcntl
import os
import stat
import time
from pathlib import Path

import pytest

from appliance.errors import EnvironmentUnavailable, RunDirError
from appliance.rundir import feedback
from appliance.rundir.feedback import BAD, COLUMNS, FILE, GOOD, RIGHT, Feedback

EARLIER = ({"role": "user", "content": "앞\n질문"}, {"role": "assistant", "content": '"답"'})
AWKWARD = (
    '=HYPERLINK("http://x")', "+82 10", "-1", "@SUM(A1)", "\tx", "\rx", "＝1", "'=1", "''@", "'가격'", "'", "",
    'a "b", c\r\nd\n', "가격은? 👍🏽", "각\u1112\u1161\u11ab", "\x00\x1b[2J", '""', '"\n"', "\u2028", "x" * 200_000,
)  # fmt: skip


def judged(text: str) -> Feedback:
    return Feedback(text, text + "!", RIGHT, text, text, EARLIER, 17, "base", "2026-01-02T03:04:05Z")


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    wanted = [judged(text) for text in AWKWARD]
    for one in wanted:
        feedback.append(tmp_path, one)
    assert feedback.read(tmp_path) == wanted
    plain = Feedback("가격은?", "만원", GOOD)
    feedback.append(tmp_path, plain)
    last = feedback.read(tmp_path)[-1]
    assert (last.question, last.answer, last.verdict, last.row, last.earlier, last.model) == (
        *("가격은?", "만원", "good", None, (), "tuned"),
    )
    assert last.time.endswith("Z")
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    for text in AWKWARD:
        feedback.append(tmp_path, judged(text))
    csv.field_size_limit(1 << 24)
    with (tmp_path / FILE).open(encoding="utf-8", newline="") as stream:
        records = list(csv.reader(stream, strict=True))
    assert records[0] == list(COLUMNS)
    assert len(records) == len(AWKWARD) + 1
    assert not [cell for record in records for cell in record if cell[:1] in set("=+-@\t\r＝＋－＠") - {""}]


def test_a_file_cut_off_at_any_byte_keeps_its_whole_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of them
    first, second = Feedback('"가"\n격?', 'a\n"b"', BAD, time="t"), Feedback("둘\n?", "c", GOOD, time="t")
    feedback.append(tmp_path, first)
    one = (tmp_path / FILE).stat().st_size
    feedback.append(tmp_path, second)
    whole = (tmp_path / FILE).read_bytes()
    header = whole.index(b"\n") + 1
    for cut in range(1, len(whole)):
        (tmp_path / FILE).write_bytes(whole[:cut])
        # the last line feed alone may be missing: an editor leaves that out
        kept = [first] * (cut >= one - 1) + [second] * (cut >= len(whole) - 1)
        if kept:
            assert feedback.read(tmp_path) == kept, cut
        elif cut >= header:
            with pytest.raises(RunDirError, match="has no record"):
                feedback.read(tmp_path)
        feedback.append(tmp_path, second)
        assert feedback.read(tmp_path) == [*kept, second], cut


def test_two_chats_write_one_after_the_other(tmp_path: Path) -> None:
    feedback.append(tmp_path, Feedback("하나\n", "답", GOOD))
    with (tmp_path / FILE).open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        if (pid := os.fork()) == 0:
            feedback.append(tmp_path, Feedback("둘\n", "답", GOOD))
            os._exit(0)
        time.sleep(0.3)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        assert len(feedback.read(tmp_path)) == 1
        fcntl.flock(other, fcntl.LOCK_UN)
    assert os.waitpid(pid, 0)[1] == 0
    assert [one.question for one in feedback.read(tmp_path)] == ["하나\n", "둘\n"]


def test_a_file_that_a_spreadsheet_saved_is_read(tmp_path: Path) -> None:
    text = 'question,answer,verdict,right,more\r\n가격은?,만원, right ,"\'=1",x\r\n,,,,\r\n'
    (tmp_path / FILE).write_text(text, encoding="utf-8-sig", newline="")
    assert feedback.read(tmp_path) == [Feedback("가격은?", "만원", RIGHT, "=1")]
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(RunDirError, match="its columns are question, answer, verdict, right, more, expected") as caught:
        feedback.append(tmp_path, Feedback("?", "!", GOOD))
    assert "move the file away" in caught.value.hint
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("question,answer\na,b\n", "it lacks the columns right, verdict"),
        ("question,answer,verdict,right\na,b,great,\n", "record 1: its verdict is 'great', expected good, bad, right"),
        ("question,answer,verdict,right,row\na,b,bad,,x\n", "record 1: `row` is 'x', expected a line number"),
        ("question,answer,verdict,right,earlier\na,b,bad,,{}1\n", "`earlier` is not a list of messages"),
        ("question,answer,verdict,right,earlier\na,b,bad,,[1]\n", "`earlier` is not a list of messages"),
        ("question,answer,verdict,right\na,b,bad,,,\n", "record 1 has more cells than the header"),
        (b"question,answer,verdict,right\n\xb0\xa1,b,bad,\n", "codec can't decode"),
    ],
)
def test_damage_is_named(tmp_path: Path, text: str | bytes, seen: str) -> None:
    (tmp_path / FILE).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(RunDirError, match=f"{FILE} is damaged: .*{seen.replace('[', '.')}"):
        feedback.read(tmp_path)


def test_nothing_was_judged(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="no answer of this run was judged") as caught:
        feedback.read(tmp_path)
    assert "/right TEXT" in caught.value.hint
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / FILE).symlink_to(elsewhere)
    with pytest.raises(EnvironmentUnavailable, match="symbolic link"):
        feedback.append(tmp_path, Feedback("?", "!", GOOD))
    assert elsewhere.read_text() == "mine"
