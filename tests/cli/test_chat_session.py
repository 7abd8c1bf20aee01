"""The commands of a chat: what is asked of whom, what is written down, and what is said if something is wrong.

The tuned model says how many questions it sees and the last of them, the base always the same: no terminal is needed.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.cli.chat_session import COMMANDS, Session
from appliance.errors import EnvironmentUnavailable, RunDirError
from appliance.prompt import format as prompt_format
from appliance.rows import csv_file
from appliance.rows.csv_file import Row
from appliance.rundir import chat_history, feedback
from appliance.rundir.feedback import Feedback
from appliance.serving import loaded_model
from appliance.serving.both_models import BothModels
from appliance.serving.conversation import Conversation
from appliance.serving.loaded_model import LoadedModel
from tests.serving.test_chat import echo, make_run, scripted

ROWS = [Row(2, "가격은?", "머그컵", "만원"), Row(5, "배송은?\n언제?", "", "이틀"), Row(9, "환불?", "", "1번째: 환불?")]


@pytest.fixture(scope="module")
def loaded(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    run = make_run(tmp_path_factory.mktemp("runs") / "shop", base_dir)
    return loaded_model.load(run, max_new_tokens=80, temperature=0.0)


@pytest.fixture(scope="module")
def both(loaded: LoadedModel) -> BothModels:
    return BothModels(scripted(loaded, echo), scripted(loaded, lambda _: "모르겠습니다"), "with the same prompt")


@dataclass
class Chat:
    """A chat with a run, and what the terminal shows of it."""

    run_path: Path
    session: Session
    read: Callable[[], str]

    def __call__(self, line: str) -> str:
        assert self.session.take(line)
        return self.read()

    def judged(self) -> list[Feedback]:
        return feedback.read(self.run_path)


@pytest.fixture
def chat(both: BothModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Chat]:
    def begin(*, keep_turns: bool = False, compares: bool = False) -> Chat:
        run = tmp_path / "shop"
        (run / "prepare").mkdir(parents=True, exist_ok=True)
        with csv_file.row_writer(run / "prepare" / "test.csv") as write:
            for row in ROWS:
                write(row)
        conversation = Conversation(both.tuned, keep_turns=keep_turns)

        def open_both(drop: Callable[[], None]) -> BothModels:
            drop()
            assert conversation.model is None
            return both

        def read() -> str:
            out, err = capsys.readouterr()
            return out + "|" + " ".join(err.split())

        session = Session(run, conversation, open_both, both=both if compares else None)
        return Chat(run, session, read)

    return begin


def test_a_question_and_its_answer(chat: Callable[..., Chat]) -> None:
    begun = chat(keep_turns=True)
    assert begun(" 하나 ") == "1번째: 하나\n\n|"
    assert begun("둘\n셋") == "2번째: 둘\n셋\n\n|"
    assert begun("/new") == "\n|started over"
    assert begun("셋") == "1번째: 셋\n\n|"
    assert begun("") == "|"
    assert not begun.session.take("/quit")


def test_the_base_is_asked_the_last_question_or_another(chat: Callable[..., Chat]) -> None:
    begun = chat(keep_turns=True)
    begun("하나")
    begun("둘")
    base = "모르겠습니다\n\n|base with the same prompt:"
    assert begun("/base") == base
    assert begun("/base 넷") == base
    assert begun("다섯").startswith("3번째: 다섯")  # what the base was asked is no turn


def test_both_answer_beside_each_other(chat: Callable[..., Chat]) -> None:
    begun = chat(keep_turns=True)
    begun("하나")
    shown = "base with the same prompt:\n모르겠습니다\n\ntuned:\n{}\n\n|"
    assert begun("/compare 둘") == shown.format("2번째: 둘")
    assert begun("/compare") == shown.format("2번째: 둘")  # again: not one turn more
    assert begun("셋").startswith("3번째: 셋")
    always = chat(compares=True)
    assert always("하나") == shown.format("1번째: 하나")
    assert always("/row 9") == shown.format("1번째: 환불?") + "row 9: 환불? wanted (the same): 1번째: 환불?"


def test_turns_that_no_longer_fit_are_named_once(chat: Callable[..., Chat], both: BothModels) -> None:
    begun = chat(keep_turns=True)
    begun("하나")
    room = 512 - both.tuned.max_new_tokens - both.tuned.prompt(prompt_format.user_message("")).shape[1]
    assert begun("/compare " + "a" * (room - 5)).count("dropped the oldest turn: the model has 512 positions") == 1


def test_the_last_question_is_asked_again(chat: Callable[..., Chat]) -> None:
    begun = chat(keep_turns=True)
    begun("하나")
    begun("둘")
    said = "the likeliest words are taken each time; `--temperature 0.7` varies answers"
    assert begun("/retry") == f"2번째: 둘\n\n|{said}"
    begun("/base")
    assert begun("/retry").startswith("모르겠습니다")
    assert begun("셋").startswith("3번째: 셋")


def test_a_test_row_is_asked_alone_and_shown_with_its_answer(chat: Callable[..., Chat]) -> None:
    begun = chat(keep_turns=True)
    begun("하나")
    assert "row 2: 가격은? input: 머그컵" in (shown := begun("/row 2"))
    assert shown.startswith("1번째: 가격은?\n\n### Input:\n머그컵")
    assert shown.endswith("wanted: 만원")
    assert "wanted: 이틀" in begun("/row")
    assert "row 9: 환불?" in begun("/row")
    assert "row 2: 가격은?" in begun("/row")
    assert "row 5: 배송은? 언제?" in begun("/row 05")
    for unknown in ("3", "x", "2 5", "-2"):
        said = begun(f"/row {unknown}")
        assert f"no test row begins in line {unknown} of the CSV" in said
        assert "the 3 test rows of this run: 2, 5, 9; /row alone takes the next one" in said
    assert begun("둘").startswith("2번째: 둘")
    (begun.run_path / "prepare" / "test.csv").unlink()
    assert "test.csv is missing" in chat_without_rows(begun)


def chat_without_rows(begun: Chat) -> str:
    begun.session._test_rows = []
    return begun("/row")


def test_answers_are_judged(chat: Callable[..., Chat]) -> None:
    begun = chat(keep_turns=True)
    begun("하나")
    assert begun("/good") == f"\n|good: noted in {begun.run_path / 'feedback.csv'}"
    begun("둘")
    for line in ("👎", "👎🏽", "👍\ufe0f", "/right 정답은\n=셋", "/bad"):
        begun(line)
    begun("/base")
    assert begun("/bad") == f"\n|bad (of the base): noted in {begun.run_path / 'feedback.csv'}"
    begun("/row 2")
    begun("/good")
    found = [(one.question, one.answer, one.verdict, one.right, one.model, one.row) for one in begun.judged()]
    of_two = ("둘", "2번째: 둘")
    assert found == [
        ("하나", "1번째: 하나", "good", "", "tuned", None),
        *((*of_two, verdict, "", "tuned", None) for verdict in ("bad", "bad", "good")),
        (*of_two, "right", "정답은\n=셋", "tuned", None),
        (*of_two, "bad", "", "tuned", None),
        ("둘", "모르겠습니다", "bad", "", "base", None),
        ("가격은?", "1번째: 가격은?\n\n### Input:\n머그컵", "good", "", "tuned", 2),
    ]
    turns = [*prompt_format.user_message("하나"), {"role": "assistant", "content": "1번째: 하나"}]
    assert [list(one.earlier) for one in begun.judged()] == [[], *[turns] * 6, []]
    assert begun.judged()[-1].input == "머그컵"


def test_the_tuned_answer_is_judged_of_two(chat: Callable[..., Chat]) -> None:
    begun = chat(compares=True)
    begun("하나")
    begun("👍")
    assert [(one.answer, one.model) for one in begun.judged()] == [("1번째: 하나", "tuned")]


def test_a_chat_is_saved(chat: Callable[..., Chat], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    begun = chat()
    begun("# 하나\n둘")
    begun("/right 정답")
    begun("/compare")
    begun("/row 2")
    assert begun("/save chat.md") == "\n|3 questions saved to chat.md"
    text = (tmp_path / "chat.md").read_text("utf-8")
    assert text.startswith(
        "# Chat with shop\n\n**Question**\n\n> # 하나\n> 둘\n\n**Answer of the tuned model**\n\n> 1번"
    )
    assert "**Right answer**\n\n> 정답\n" in text
    assert "**Question (row 2)**\n\n> 가격은?\n\n**Input**\n\n> 머그컵" in text
    begun("/save chat.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "chat.jsonl").read_text("utf-8").splitlines()]
    assert [list(line["answers"]) for line in lines] == [["tuned"], ["base", "tuned"], ["tuned"]]
    assert (lines[0]["verdict"], lines[0]["right"], lines[2]["wanted"]) == ("right", "정답", ROWS[0].output)
    before = (tmp_path / "chat.md").read_bytes()
    assert "chat.md already exists" in begun("/save chat.md")
    assert (tmp_path / "chat.md").read_bytes() == before
    assert "not saved: " in begun("/save nowhere/chat.md")
    monkeypatch.setenv("APPLIANCE_HOST_RUNS_DIR", "./runs")  # as compose.yaml sets it
    assert begun("/save here.md") == "\n|3 questions saved to runs/here.md"
    assert (begun.run_path.parent / "here.md").is_file()
    assert begun("/good") == "\n|good: noted in runs/shop/feedback.csv"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/bse", "there is no command /bse Fix: /help lists them"),
        ("/retry", "nothing was asked yet"),
        ("/base", "nothing was asked yet"),
        ("/compare", "nothing was asked yet"),
        ("/good", "nothing was asked yet"),
        ("/good 하나", "/good takes nothing after it"),
        ("/right", "/right needs the right answer"),
        ("/right 정답", "nothing was asked yet"),
        ("/save", "/save needs the name of a file"),
        ("/compare \udcff", "the question is not UTF-8 text"),
        ("/save x.md", "nothing was asked yet"),
    ],
)
def test_what_is_wrong_with_a_command(chat: Callable[..., Chat], line: str, said: str) -> None:
    begun = chat()
    assert said in begun(line)
    assert not (begun.run_path / feedback.FILE).exists()
    assert begun("/etc/hosts?").startswith("1번째: /etc/hosts?")


def test_help_lists_every_command(chat: Callable[..., Chat]) -> None:
    shown = chat()("/help")
    assert [command for command in COMMANDS if command not in shown and command != "/help"] == []


def test_a_judgement_that_cannot_be_written_ends_no_chat(chat: Callable[..., Chat]) -> None:
    begun = chat()
    begun("하나")
    (begun.run_path / feedback.FILE).mkdir()
    assert "Error: not noted: " in begun("/good")
    (begun.run_path / feedback.FILE).rmdir()
    (begun.run_path / feedback.FILE).symlink_to("/dev/null")
    assert "is a symbolic link" in begun("/good")
    assert begun("둘").startswith("1번째: 둘")


def test_a_base_that_is_not_there_leaves_the_tuned_model(both: BothModels, tmp_path: Path) -> None:
    def gone(_: Callable[[], None]) -> BothModels:
        raise RunDirError("the base is gone")

    session = Session(tmp_path, Conversation(both.tuned), gone)
    assert session.take("/base 하나")
    assert session.take("하나")

    def lost(drop: Callable[[], None]) -> BothModels:
        drop()
        raise RunDirError("the adapter is not what it was")

    with pytest.raises(RunDirError, match="adapter"):
        Session(tmp_path, Conversation(both.tuned), lost).take("/base 하나")


def test_typed_lines_are_kept_bounded_and_without_secrets(tmp_path: Path) -> None:
    for line in ("하나\n둘", "hf_" + "a" * 34, "x" * 5000, "마지막"):
        chat_history.append(tmp_path, line)
    path = tmp_path / chat_history.FILE
    assert chat_history.read(tmp_path) == ["하나\n둘", "마지막"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open("a") as stream:
        stream.write('["list"]\n{"broken')
    assert chat_history.read(tmp_path) == ["하나\n둘", "마지막"]
    path.write_text("".join(f'"{number}"\n' for number in range(chat_history.LINES)))
    chat_history.append(tmp_path, "neu")
    kept = chat_history.read(tmp_path)
    assert (len(kept), kept[0], kept[-1]) == (chat_history.LINES // 2, "501", "neu")
    path.write_text(("x" * 1000 + "\n") * 2000)
    chat_history.append(tmp_path, "neu")
    assert path.stat().st_size < chat_history.BYTES
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EnvironmentUnavailable, match="symbolic link"):
        chat_history.append(tmp_path, "하나")
    assert chat_history.read(tmp_path) == []
