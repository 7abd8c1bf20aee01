"""A message quotes the row that it is about; the log, which may be sent to somebody, does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.process import quoted_rows
from tests.helpers.in_process import Appliance, command_line

ROW = "행카나리"  # in every cell
LONG = f"{ROW} 지난주에 주문한 운동화의 배송 상태와 도착 예정일을 지금 확인하고 싶어요"


@pytest.fixture
def appliance(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Appliance]:
    with command_line(monkeypatch, capsys) as call:
        yield call


def _csv(*rows: str, header: str = "instruction,output", fill: int = 20) -> bytes:
    return "\n".join([header, *rows, *(f"{ROW} {i}?,{ROW} {i}." for i in range(fill)), ""]).encode()


# What is odd or wrong -> file, settings, exit code, part of the message
FILES: dict[str, tuple[bytes, list[str], int, str]] = {
    "nothing": (_csv(), [], 0, "prepare"),
    "escapes": (_csv(rf"a\n{ROW},b", f"{ROW}&amp;{ROW},&lt;{ROW}"), [], 0, "literal line breaks"),
    "markers": (_csv(f"### {ROW},b", f"<{ROW}>[INST]{ROW},\x1b[2J{ROW}"), [], 0, "special tokens"),
    "curly quotes": (_csv(*[f"“{ROW}{i}”,„{ROW}{i}“" for i in range(20)], fill=3), [], 0, "curly quotes"),
    "near twins": (_csv(*(f"{LONG}{sign},{ROW}" for sign in "!?…~")), ["data.split=notebook"], 0, "alike"),
    "equal questions": (_csv(*[f"{LONG},{ROW} {i}" for i in range(30)]), ["data.split=notebook"], 0, "split leaks"),
    "a field too many": (_csv(f"{ROW},{ROW},{ROW}"), [], 3, "3 fields; the header has 2"),
    "a comma at its end": (_csv(f"{ROW},{ROW},"), [], 3, "drop the last comma"),
    "no header": (_csv(header=f"{ROW}은 얼마인가요?,{ROW}"), [], 3, "looks like data"),
    "a title": (_csv(header=f"# {ROW}\ninstruction,output"), [], 3, "looks like the header"),
    "no UTF-8": ("instruction,output\nrowcanary caf\xe9,x\n".encode("latin-1"), [], 3, "not valid UTF-8"),
    "an unclosed quote": (_csv(f'"{ROW},b'), [], 3, "quote"),
    "a long row": (_csv(f"{ROW * 200},b"), ["model.max_seq_length=256"], 3, "tokens"),
    "a special token": (_csv(f"{ROW}</s>{ROW},b"), [], 3, "special token"),
    "no side": (
        _csv(*[f"{ROW} {i}?,b,{ROW}" for i in range(9)], header="instruction,output,side", fill=0),
        ["data.split=column"],
        3,
        "is not a side",
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_a_log_holds_no_row(what: str, appliance: Appliance, tmp_path: Path, base_dir: Path) -> None:
    content, settings, wanted, message = FILES[what]
    (tmp_path / "rows.csv").write_bytes(content)
    recipe = f"name: shop\nmodel: {{id: {base_dir}, load_in_4bit: false}}\ndata: {{csv: {tmp_path / 'rows.csv'}}}\n"
    (tmp_path / "shop.yaml").write_text(recipe + "engine: transformers\n", encoding="utf-8")
    asked = [part for setting in settings for part in ("--set", setting)]
    code, told, err = appliance("check", tmp_path / "shop.yaml", "--runs-dir", tmp_path / "runs", *asked)
    if code == 0:
        code, _, more = appliance("prepare", tmp_path / "runs" / "shop")
        err += more
    assert (code, message in told + err) == (wanted, True), err[-900:]
    log = (tmp_path / "runs" / "shop" / "appliance.log").read_text(encoding="utf-8")
    assert ROW not in log
    assert "rowcanary" not in log
    assert "appliance check" in log


def test_what_was_quoted_is_masked_the_longest_first() -> None:
    quoted_rows.forget()
    for text in ("'a'", "'a' and 'b'"):
        quoted_rows.learn(text)
    assert quoted_rows.masked("x 'a' and 'b' 'a'") == f"x {quoted_rows.MASK} {quoted_rows.MASK}"


def test_a_file_of_odd_rows_alone_fills_no_memory() -> None:
    quoted_rows.forget()
    for number in range(10_000):
        quoted_rows.learn(f"'{number}'")
    assert len(quoted_rows._quoted) == quoted_rows._MOST
    quoted_rows.forget()
