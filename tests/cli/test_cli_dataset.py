"""`appliance dataset`: what it offers, what it prints, which exit code a failure becomes, what stays behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openpyxl import Workbook
from typer.testing import CliRunner

from appliance.cli import app as cli_app
from appliance.cli import run as cli_run
from datasets_src.pairs import Pair
from datasets_src.sources import delimited
from tests.helpers.in_process import Appliance, command_line

OPTIONS = {
    "korquad": ["--with-paragraph", "--extractive", "--answer", "--force", "--json"],
    "qa-text": ["--question-marker", "--answer-marker", "--force", "--json"],
    "delimited": ["--separator", "--pattern", "--force", "--json"],
    "records": [
        "--question",
        "--answer",
        "--input",
        "--group",
        "--turns",
        "--sheet",
        "--header-row",
        "--force",
        "--json",
    ],
}


@pytest.fixture
def appliance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Appliance]:
    """`app.main` in this process, in tmp_path: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    with command_line(monkeypatch, capsys, "dataset") as call:
        yield call


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_korquad_takes_one_of_several_answers_and_counts_what_it_leaves_out(
    appliance: Appliance, tmp_path: Path
) -> None:
    questions = [
        {"question": "수도는?", "answers": [{"text": "서울"}, {"text": "서울특별시"}, {"text": "서울특별시"}]},
        {"question": "없는 답?", "answers": [], "is_impossible": True},
    ]
    document = {"data": [{"paragraphs": [{"context": "서울은 수도이다.", "qas": questions}]}]}
    (tmp_path / "in.json").write_text(json.dumps(document))
    code, out, err = appliance("korquad", "in.json", "out.csv")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "read         2",
        "written      1",
        "dropped      1",
        "  1 × no answer (unanswerable): article 1, question 2",
        "articles: 1",
        "paragraphs: 1",
        "questions with several answers: 1",
        "questions with different answers: 1",
        "CSV          out.csv",
        "origin note  out.csv.origin.json",
    ]
    assert (tmp_path / "out.csv").read_text("utf-8") == "instruction,input,output\n수도는?,,서울\n"
    code, out, _ = appliance("korquad", "in.json", "out.csv", "--with-paragraph", "--answer", "common", "--force")
    assert code == 0
    assert "\ngroup        --set data.group_by=group keeps the rows of a group on one side of the split\n" in out
    head, row = (tmp_path / "out.csv").read_text("utf-8").splitlines()
    assert head == "instruction,input,output,group"
    assert re.fullmatch("수도는\\?,서울은 수도이다.,서울특별시,paragraph-[0-9a-f]{16}", row)
    assert json.loads((tmp_path / "out.csv.origin.json").read_text("utf-8"))["options"] == {
        "with_paragraph": True,
        "answer": "common",
    }


def test_qa_text_takes_the_usual_markers_or_those_given(appliance: Appliance, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("<|question|>\n색은?\n<|answer|>\n빨강\n", "utf-8")
    assert appliance("qa-text", "in.txt", "out.csv")[0] == 0
    assert (tmp_path / "out.csv").read_text("utf-8") == "instruction,input,output\n색은?,,빨강\n"
    (tmp_path / "in.txt").write_text("물: 맛은?\n답: 달다\n", "utf-8")
    assert appliance("qa-text", "in.txt", "2.csv", "--question-marker", "물:", "--answer-marker", "답:")[0] == 0
    assert (tmp_path / "2.csv").read_text("utf-8") == "instruction,input,output\n맛은?,,달다\n"


def test_delimited_splits_at_a_pattern_or_a_separator_and_lists_lines_without_one(
    appliance: Appliance, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("색은? | 빨강\n" * 6 + "없음\n" * 6, "utf-8")
    code, out, _ = appliance("delimited", "in.txt", "out.csv", "--pattern", r"\s+\|\s+")
    assert code == 0
    assert "  6 × no separator in the line: line 7, line 8, line 9, line 10, line 11, …\n" in out
    (tmp_path / "in.txt").write_text("색은? | 빨강\n", "utf-8")
    assert appliance("delimited", "in.txt", "2.csv", "--separator", "? |")[0] == 0
    assert (tmp_path / "2.csv").read_text("utf-8") == "instruction,input,output\n색은,,빨강\n"


def test_records_takes_the_columns_that_are_named(appliance: Appliance, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps({"물음": "가", "a": "나", "지": "글", "m": "1", "날짜": "2"}))
    names = ["--question", "물음", "--answer", "a", "--input", "지", "--group", "m"]
    code, out, _ = appliance("records", "in.json", "out.csv", *names, "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "out.csv.origin.json").read_text("utf-8"))
    assert (tmp_path / "out.csv").read_text("utf-8") == "instruction,input,output,group\n가,글,나,1\n"
    _, out, _ = appliance("records", "in.json", "out.csv", *names, "--force")
    assert "fields: question from '물음', answer from 'a', input from '지', group from 'm'\n" in out
    assert "unused fields: '날짜'\n" in out


def test_records_turns_a_chat_into_rows_of_all_or_the_last_turns(appliance: Appliance, tmp_path: Path) -> None:
    turns = [("system", "짧게"), ("user", "색은?"), ("assistant", "빨강")]
    (tmp_path / "in.json").write_text(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}))
    assert appliance("records", "in.json", "all.csv")[0] == 0
    assert (tmp_path / "all.csv").read_text("utf-8") == 'instruction,input,output\n"짧게\n\n색은?",,빨강\n'
    assert appliance("records", "in.json", "last.csv", "--turns", "last")[0] == 0
    assert (tmp_path / "last.csv").read_text("utf-8") == "instruction,input,output\n색은?,,빨강\n"


def test_the_sheet_of_a_workbook(appliance: Appliance, tmp_path: Path) -> None:
    book = Workbook()
    book.create_sheet("둘째").append(["Q", "A"])
    book["둘째"].append(["색은?", "빨강"])
    book.save(tmp_path / "in.xlsx")
    code, _, err = appliance("records", "in.xlsx", "out.csv", "--sheet", "셋째")
    assert (code, err.splitlines()[0]) == (3, "Error: in.xlsx: no sheet '셋째'; the workbook has 'Sheet', '둘째'")
    assert appliance("records", "in.xlsx", "out.csv", "--sheet", "둘째")[0] == 0
    assert (tmp_path / "out.csv").read_text("utf-8") == "instruction,input,output\n색은?,,빨강\n"


def test_what_is_wrong_is_exit_3_with_a_hint(appliance: Appliance, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text("<!doctype html><title>404</title>")
    for source in OPTIONS:
        code, out, err = appliance(source, "in.json", "out.csv")
        assert (code, out) == (3, "")
        assert err.startswith("Error: in.json, line 1: an HTML page begins here; expected ")
        assert "Fix: a web page was saved instead of the file" in err
    code, _, err = appliance("records", "none.json", "out.csv")
    assert (code, err.splitlines()[0]) == (3, "Error: there is no file none.json")
    assert written(tmp_path) == ["in.json"]


def test_an_existing_csv_needs_force(appliance: Appliance, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("색은?|빨강", "utf-8")
    (tmp_path / "out.csv").write_text("mine")
    code, _, err = appliance("delimited", "in.txt", "out.csv")
    assert code == 3
    assert err == "Error: out.csv already exists\nFix: name another file, or replace it with --force\n"
    assert (tmp_path / "out.csv").read_text() == "mine"
    assert appliance("delimited", "in.txt", "out.csv", "--force")[0] == 0
    assert written(tmp_path) == ["in.txt", "out.csv", "out.csv.origin.json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(
    appliance: Appliance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def stopped(*_: object, **__: object) -> Iterator[Pair]:
        yield Pair("색은?", "빨강")
        assert len(written(tmp_path)) == 2
        os.kill(os.getpid(), number)
        yield Pair("맛은?", "달다")

    (tmp_path / "in.txt").write_text("색은?|빨강", "utf-8")
    monkeypatch.setattr(delimited, "pairs", stopped)
    assert appliance("delimited", "in.txt", "out.csv")[0] == 128 + number
    assert written(tmp_path) == ["in.txt"]


@pytest.mark.parametrize("source", OPTIONS)
def test_the_written_csv_passes_check(appliance: Appliance, tmp_path: Path, source: str) -> None:
    texts = {
        "korquad": json.dumps(
            {
                "data": [
                    {
                        "paragraphs": [
                            {"qas": [{"question": f"질문 {i}?", "answers": [{"text": "답"}]} for i in range(50)]}
                        ]
                    }
                ]
            }
        ),
        "qa-text": "".join(f"<|question|>질문 {i}?<|answer|>답 {i}\n" for i in range(50)),
        "delimited": "".join(f"질문 {i}?|답 {i}\n" for i in range(50)),
        "records": "".join(json.dumps({"Q": f"질문 {i}?", "A": f"답 {i}"}) + "\n" for i in range(50)),
    }
    (tmp_path / "in.txt").write_text(texts[source], "utf-8")
    assert appliance(source, "in.txt", "out.csv")[0] == 0
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "check", "out.csv", "--json"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(cli_run.__file__).parents[2])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "50" in done.stdout


def _help(*command: str) -> str:
    shown = CliRunner().invoke(cli_app.app, ["dataset", *command, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    return shown.output


def test_the_sources_and_their_options_are_frozen() -> None:
    listed = re.findall(r"^  ([\w-]+)", _help().partition("Commands:")[2].partition("\n\n")[0], re.MULTILINE)
    assert {*OPTIONS, "feedback", "hub", "paraphrase", "self-instruct", "upload"} == set(listed)
    for source, options in OPTIONS.items():
        assert re.findall(r"^  (-[\w-]+)", _help(source).partition("Options:")[2], re.MULTILINE) == [*options, "-h"]


def test_the_command_line_loads_no_source_before_it_is_asked() -> None:
    heavy = ("datasets_src", "pyarrow", "openpyxl", "pandas", "torch")
    code = f"import sys; from appliance.cli import run as cli; print([n for n in sys.modules if n.startswith({heavy})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
