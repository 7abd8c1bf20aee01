"""`appliance dataset feedback`: judged answers of a run as a CSV that `check` takes, and as trl's preference pairs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.prompt import format as prompt_format
from appliance.prompt.templates import INPUT_MARKER
from appliance.report import page
from appliance.rundir import feedback
from appliance.rundir.feedback import BAD, FILE, GOOD, RIGHT, Feedback
from datasets_src.sources.feedback import TEST_ROW
from tests.conftest import read_csv
from tests.helpers.finished import SIDES, finished_run
from tests.helpers.in_process import Appliance, command_line

NAMES = ("가격", "배송", "환불", "교환", "포장", "결제", "할인", "재고", "색상", "크기", "보증", "문의")


@pytest.fixture(scope="module")
def judged_run(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never write into it."""
    run = finished_run(tmp_path_factory.mktemp("runs") / "shop", base_dir).path
    for name in NAMES:
        feedback.append(run, Feedback(f"{name} 알려줘", "몰라요", RIGHT, f"{name}\n안내: =1"))
    _, question, context, _ = SIDES["test"][0]
    feedback.append(run, Feedback(question.upper(), "틀림", RIGHT, "맞음", context))
    feedback.append(run, Feedback("표는?", "아니", BAD, input="a|b"))
    feedback.append(run, Feedback("표는?", "맞아", GOOD, input="a|b"))
    earlier = ({"role": "user", "content": "하나"}, {"role": "assistant", "content": "둘"})
    feedback.append(run, Feedback("셋?", "넷", GOOD, earlier=earlier))
    return run


@pytest.fixture
def appliance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Appliance]:
    monkeypatch.chdir(tmp_path)
    with command_line(monkeypatch, capsys) as call:
        yield call


def test_judged_answers_become_rows_that_check_takes(appliance: Appliance, judged_run: Path, tmp_path: Path) -> None:
    code, out, err = appliance("dataset", "feedback", judged_run, "more.csv", "--pairs", "pairs.jsonl")
    assert (code, err) == (0, "")
    assert f"1 × {TEST_ROW}: record 13" in out
    assert "preference pairs: 13\n" in out
    assert out.endswith("pairs        pairs.jsonl\n")
    rows = [(row["instruction"], row["input"], row["output"]) for row in read_csv(tmp_path / "more.csv")]
    assert rows == [
        *((f"{name} 알려줘", "", f"{name}\n안내: =1") for name in NAMES),
        ("표는?", "a|b", "맞아"),
        ("User: 하나\n\nAssistant: 둘\n\nUser: 셋?", "", "넷"),
    ]
    note = json.loads((tmp_path / "more.csv.origin.json").read_text("utf-8"))
    assert (note["source"], note["inputs"][0]["name"], note["read"]) == ("feedback", FILE, 16)
    assert str(tmp_path) not in json.dumps(note)
    assert appliance("check", "more.csv", "--set", "name=more")[0] == 0
    code, out, _ = appliance("dataset", "feedback", judged_run, "more.csv", "--with-test-rows", "--force")
    assert (code, TEST_ROW in out) == (0, False)
    assert len(read_csv(tmp_path / "more.csv")) == len(rows) + 1


def test_trl_renders_the_pairs_in_the_trained_prompt(
    appliance: Appliance, judged_run: Path, base_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer
    from trl.data_utils import is_conversational, maybe_apply_chat_template

    assert appliance("dataset", "feedback", judged_run, "more.csv", "--pairs", "pairs.jsonl")[0] == 0
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text("utf-8").splitlines()]
    of_table = next(one for one in pairs if INPUT_MARKER in one["prompt"][0]["content"])
    assert is_conversational(of_table)
    tokenizer = AutoTokenizer.from_pretrained(judged_run / "merge" / "model")
    rendered = maybe_apply_chat_template(of_table, tokenizer)
    prompt = prompt_format.from_folder("alpaca", base_dir)
    assert rendered["prompt"] == prompt.text(prompt_format.user_message("표는?", "a|b"))
    ends = [rendered[key].removesuffix(prompt.eos_token).strip() for key in ("chosen", "rejected")]
    assert ends == ["맞아", "아니"]


def test_judged_answers_change_no_release_and_no_page(base_dir: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "shop", base_dir)
    page.write_html(run.path)
    before = (run.path / "report.html").read_bytes()
    feedback.append(run.path, Feedback("비밀질문 07", "비밀답변 07", RIGHT, "비밀정답 07"))
    page.write_html(run.path)
    assert (run.path / "report.html").read_bytes() == before
    run.publish()
    assert run.refused() == set()
    released = [path for path in run.release.rglob("*") if path.is_file()]
    assert len(released) > 5
    assert not [path for path in released if path.name == FILE or "비밀".encode() in path.read_bytes()]


def test_what_cannot_be_written_is_named(appliance: Appliance, judged_run: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        code, _, err = appliance("dataset", "feedback", *arguments)
        assert code in (3, 8)
        return " ".join(err.split())

    assert "is not a run directory" in refused(tmp_path, "out.csv")
    assert "--pairs out.csv is the CSV itself" in refused(judged_run, "out.csv", "--pairs", "out.csv")
    (tmp_path / "pairs.jsonl").write_text("mine")
    assert "pairs.jsonl already exists" in refused(judged_run, "out.csv", "--pairs", "pairs.jsonl")
    run = tmp_path / "run"
    shutil.copytree(judged_run, run, ignore=shutil.ignore_patterns("*.safetensors"))
    (run / FILE).unlink()
    assert "no answer of this run was judged Fix: `appliance chat" in refused(run, "out.csv")
    feedback.append(run, Feedback("?", "!", GOOD))
    assert "no preference pair" in refused(run, "out.csv", "--pairs", "new.jsonl")
    feedback.append(run, Feedback("?", "!", BAD))
    assert "judged bad, and no right answer given: record 2" in refused(run, "out.csv")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix) == ["pairs.jsonl"]
