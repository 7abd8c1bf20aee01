"""Chat: which run is asked, what the model is asked, how the answer comes, and what a terminal sees of it.

Most tests let a tiny model of random weights say what a script wants: transformers' own `generate` runs, and only the
likeliest token is decided here. What the script says depends on the prompt it finds, so that it shows who was asked.
"""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, AutoTokenizer

from appliance.cli import answers_shown, chat
from appliance.cli.chat import Asking
from appliance.engines.decoding import GREEDY, Sampling
from appliance.errors import DataError, EnvironmentUnavailable, GateRefused, Interrupted, RecipeError, RunDirError
from appliance.process import signals
from appliance.process.files import write_json
from appliance.process.terminal import printable
from appliance.prompt import format as prompt_format
from appliance.rundir import proven
from appliance.serving import conversation, loaded_model
from appliance.serving.both_models import BothModels
from appliance.serving.conversation import Conversation
from appliance.serving.loaded_model import LoadedModel
from appliance.serving.stream import Stream
from tests.helpers.models import tiny_tokenizer
from tests.helpers.talking import ENDLESS, echo, make_run, scripted


@pytest.fixture(scope="module")
def run_path(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests. Never write into it."""
    return make_run(tmp_path_factory.mktemp("runs") / "shop", base_dir)


@pytest.fixture(scope="module")
def loaded(run_path: Path) -> LoadedModel:
    return loaded_model.load(run_path, max_new_tokens=None, temperature=0.0)


# --- which run


def test_the_newest_proven_model_is_asked(tmp_path: Path, base_dir: Path) -> None:
    for age, name in enumerate(("newest", "older")):
        made = make_run(tmp_path / name, base_dir)
        os.utime(made / "merge" / "stage.json", (1e9 - age, 1e9 - age))
    make_run(tmp_path / "refused", base_dir, passed=False)
    make_run(tmp_path / "trained", base_dir, until="train")
    make_run(tmp_path / "damaged", base_dir)
    (tmp_path / "damaged" / "merge" / "proof.json").write_text("{", encoding="utf-8")
    assert proven.find(None, tmp_path) == tmp_path / "newest"
    assert proven.find(tmp_path / "older", tmp_path) == tmp_path / "older"


def test_without_a_run_the_way_to_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="no runs in") as caught:
        proven.find(None, tmp_path)
    assert "appliance run RECIPE" in caught.value.hint
    with pytest.raises(RunDirError, match="not a run directory"):
        proven.find(tmp_path, tmp_path)


@pytest.mark.parametrize("named", [True, False])
def test_the_missing_stage_is_named(tmp_path: Path, base_dir: Path, named: bool) -> None:
    run = make_run(tmp_path / "my run", base_dir, until="prepare")
    with pytest.raises(RunDirError, match="the stage `train` is not done") as caught:
        proven.find(run if named else None, tmp_path)
    assert f"`appliance run '{run}'`" in caught.value.hint


def test_an_unproven_or_changed_model_is_refused(tmp_path: Path, base_dir: Path) -> None:
    refused = make_run(tmp_path / "refused", base_dir, passed=False)
    with pytest.raises(GateRefused, match="its proof did not pass") as caught:
        proven.find(refused, tmp_path)
    assert caught.value.exit_code == 6
    assert f"appliance run {refused} --redo merge" in caught.value.hint
    changed = make_run(tmp_path / "changed", base_dir)
    (changed / "merge" / "model" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(RunDirError, match="has 4 bytes"):
        proven.find(changed, tmp_path)
    shutil.rmtree(changed / "merge" / "model")
    with pytest.raises(RunDirError, match="expected a folder `model`"):
        proven.find(changed, tmp_path)


def test_the_first_word_may_be_the_run(tmp_path: Path, run_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split_words = partial(chat.split_words, runs_dir=tmp_path / "runs")
    assert split_words([str(run_path), "가격은?"]) == (run_path, "가격은?")
    assert split_words([str(run_path), "얼마", "예요?"]) == (run_path, "얼마 예요?")
    assert split_words(["가격은?"]) == (None, "가격은?")
    assert split_words(["원/달러", "환율은?"]) == (None, "원/달러 환율은?")
    monkeypatch.chdir(run_path.parent)
    assert split_words(["shop", "가격은?"]) == (Path("shop"), "가격은?")
    for words in ([str(run_path)], [" "], [str(run_path), ""]):
        with pytest.raises(RecipeError, match="no question"):
            split_words(words)
    for mistyped in (str(run_path.parent / "shpo"), str(tmp_path)):
        with pytest.raises(RunDirError, match="not a run directory"):
            split_words([mistyped, "가격은?"])


def test_the_name_of_a_run_alone_is_not_taken_for_the_question(run_path: Path) -> None:
    """The newest model was asked instead, with that name before the question."""
    with pytest.raises(RunDirError, match="shop is not a run directory") as caught:
        chat.split_words(["shop", "가격은?"], run_path.parent)
    assert f"did you mean {run_path}?" in caught.value.hint
    assert chat.split_words(["shop 가격은?"], run_path.parent) == (None, "shop 가격은?")
    assert chat.split_words(["shop"], run_path.parent) == (None, "shop")


# --- the model


def test_the_model_is_loaded_as_a_user_of_the_release_would(loaded: LoadedModel, base_dir: Path) -> None:
    kind = next(loaded.model.parameters())
    expected = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    assert (kind.dtype, kind.is_cuda, loaded.model.training) == (expected, torch.cuda.is_available(), False)
    assert (loaded.max_new_tokens, loaded.stop, loaded.sampling) == (40, (), GREEDY)
    messages = prompt_format.user_message("가격은?", "표")
    assert loaded.prompt(messages)[0].tolist() == prompt_format.from_folder("alpaca", base_dir).prompt_ids(messages)


def test_the_recipe_says_how_an_answer_ends(tmp_path: Path, base_dir: Path) -> None:
    drawn = "sampling: {temperature: 0.3, top_p: 0.9, repetition_penalty: 1.2, no_repeat_ngram_size: 2}"
    run = make_run(tmp_path / "run", base_dir, more=f", stop: ['끝', 'END'], {drawn}")
    loaded = loaded_model.load(run, max_new_tokens=7, temperature=None)
    assert (loaded.max_new_tokens, loaded.stop) == (7, ("끝", "END"))
    wanted = Sampling(temperature=0.3, top_p=0.9, repetition_penalty=1.2, no_repeat_ngram_size=2)
    assert loaded.sampling == wanted
    greedy = loaded_model.load(run, max_new_tokens=40, temperature=0.0)
    assert greedy.sampling == replace(wanted, temperature=0.0)
    plain = replace(greedy, sampling=GREEDY)
    assert most_of_a_pair(greedy) == 1 < most_of_a_pair(plain)  # no two tokens follow each other twice


def most_of_a_pair(model: LoadedModel) -> int:
    """How often the most frequent pair of tokens stands in an answer of 40."""
    seen: list[list[int]] = [[]]

    def decode(ids: list[int]) -> str:
        seen.append(ids)
        return ""

    prompt = model.prompt(prompt_format.user_message("가격은?"))
    model.generate(prompt, Stream(decode, set(), (), None), 40, lambda: False)
    return max(Counter(pairwise(seen[-1])).values())


def test_a_model_that_does_not_load_is_no_bug(tmp_path: Path, base_dir: Path) -> None:
    run = make_run(tmp_path / "run", base_dir)
    model_dir = run / "merge" / "model"
    (model_dir / "chat_template.jinja").unlink()
    with pytest.raises(EnvironmentUnavailable, match="no chat template") as caught:
        loaded_model.load(run, max_new_tokens=None, temperature=0.0)
    assert "--redo merge" in caught.value.hint
    weights = model_dir / "model.safetensors"
    weights.write_bytes(b"\xff" * weights.stat().st_size)
    with pytest.raises(EnvironmentUnavailable, match=re.escape(f"{model_dir} does not load")):
        loaded_model.load(run, max_new_tokens=None, temperature=0.0)
    (model_dir / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(EnvironmentUnavailable, match="does not load"):
        loaded_model.load(run, max_new_tokens=None, temperature=0.0)


# --- the answer


def test_ask_answers_as_transformers_does(run_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_dir = run_path / "merge" / "model"
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "가격은?"}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=60, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert expected.rstrip("\ufffd")  # else it shows nothing

    ask = partial(chat.ask, [str(run_path), "가격은?"], Path(), Asking(60, 0.0), input_text="")
    ask(as_json=True)
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert list(told) == ["question", "answer", "stopped", "tokens", "seconds"]
    assert (told["question"], told["tokens"], told["stopped"]) == ("가격은?", len(ids), bool(ids[-1] == 2))
    assert told["answer"] == (expected if told["stopped"] else expected.rstrip("\ufffd"))
    assert not re.search(r"[\x7f-\x9f]", out)
    assert ("cut off after 60 tokens: --max-new-tokens allows more" in err) == (not told["stopped"])
    ask(as_json=False)
    shown = capsys.readouterr().out
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    assert shown == printable(told["answer"]) + "\n"


def test_json_shows_no_control_character() -> None:
    reply = conversation.Reply("값?", "\x9b31m\x1b[2J\x7f한글", True, 3, 0.5)
    assert re.search(r"[\x00-\x1f\x7f-\x9f]", reply.to_json()) is None
    assert "한글" in reply.to_json()
    assert json.loads(reply.to_json())["answer"] == reply.answer


def test_the_context_goes_where_it_was_trained(loaded: LoadedModel) -> None:
    seen: list[str] = []
    model = scripted(loaded, lambda prompt: seen.append(prompt) or "네")
    assert Conversation(model).say("얼마?", "사과 천원").answer == "네"
    assert seen[0].endswith("### Instruction:\n얼마?\n\n### Input:\n사과 천원\n\n### Response:\n")


def test_sampling_varies(loaded: LoadedModel) -> None:
    model = replace(loaded, sampling=Sampling(temperature=1.5))
    assert len({Conversation(model).say("가격은?").answer for _ in range(4)}) > 1
    assert len({Conversation(loaded).say("가격은?").answer for _ in range(2)}) == 1


def test_eos_or_a_stop_text_ends_the_answer(loaded: LoadedModel) -> None:
    model = scripted(loaded, lambda _: " 네 \nEND 아니요")
    pieces: list[str] = []
    reply = Conversation(replace(model, stop=("ENDE", "END"))).say("?", write=pieces.append)
    assert (reply.answer, reply.stopped, reply.tokens) == ("네", True, len(" 네 \nEND".encode()))
    assert "".join(pieces) == "네"
    reply = Conversation(model).say("?")
    assert (reply.answer, reply.stopped) == ("네 \nEND 아니요", True)
    assert reply.tokens == len(" 네 \nEND 아니요".encode()) + 1
    reply = Conversation(replace(model, max_new_tokens=3)).say("?")
    assert (reply.answer, reply.stopped, reply.tokens) == ("", False, 3)  # two bytes of 네 are no character


def _stream(backend: Any, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], str]:
    pieces: list[str] = []
    stream = Stream(backend.decode, {2}, stop, pieces.append)
    for length in range(1, len(ids) + 1):
        stream.feed(ids[:length])
    return pieces, stream.finish()


def test_hangul_comes_character_by_character() -> None:
    tokenizer = tiny_tokenizer()  # a token a byte: a syllable is three
    text = "값은 만원,\n👍입니다."
    pieces, answer = _stream(tokenizer, [*tokenizer(text)["input_ids"], 2])
    assert pieces == ["값", "은", " 만", "원", ",", "\n👍", "입", "니", "다", "."]
    assert answer == text


def test_hangul_of_a_tokenizer_with_byte_fallback() -> None:
    # whose decoder turns a whole run of bytes into replacement characters while its last character is incomplete
    tokens = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    backend = Tokenizer(models.BPE(vocab=tokens, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    pieces, answer = _stream(backend, [3 + byte for byte in "만원입니다".encode()])
    assert (pieces, answer) == (list("만원입니다"), "만원입니다")
    pieces, _ = _stream(backend, [*(3 + byte for byte in "만".encode()), 3 + "만".encode()[0], 2])
    assert pieces == ["만"]  # four replacement characters now, but what was shown is not shown again


def test_bytes_that_are_no_text_are_shown_when_that_is_certain() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("가a")["input_ids"]
    broken = [*ids[:2], *ids[3:], *ids[:1]]  # two bytes of 가, a, one byte of 가
    pieces, answer = _stream(tokenizer, broken)
    assert ("".join(pieces), answer) == ("\ufffda", "\ufffda")
    assert _stream(tokenizer, [*broken, 2])[1] == "\ufffda\ufffd"  # said to the end, and so it was


def test_no_part_of_a_stop_text_is_shown() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("만원 ##\n### 다음")["input_ids"]
    pieces, answer = _stream(tokenizer, ids, stop=("###",))
    assert ("".join(pieces), answer) == ("만원 ##", "만원 ##")
    pieces, _ = _stream(tokenizer, tokenizer("a ##b")["input_ids"], stop=("###",))
    assert pieces == ["a", " ##b"]  # held back, then known to be text


# --- the conversation


def test_questions_in_a_row_are_answered_as_each_alone(
    loaded: LoadedModel, run_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = ["가격은?", "배송은 얼마나 걸리나요?", "환불되나요?", "가격은?", "어디서 사나요?"]
    alone = []
    monkeypatch.setattr(chat, "load", lambda *_, **__: loaded)
    for question in questions:
        chat.ask([str(run_path), question], Path(), Asking(temperature=0.0), input_text="", as_json=True)
        alone.append(json.loads(capsys.readouterr().out)["answer"])
    assert len(set(alone)) > 1
    _piped(monkeypatch, loaded, run_path, "\n".join(questions))
    out, err = capsys.readouterr()
    assert out.splitlines() == [printable(answer.replace("\n", "\\n")) for answer in alone]
    assert " ".join(err.split()) == chat.ALONE
    _piped(monkeypatch, loaded, run_path, "\n".join(questions), keep_turns=True)
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == printable(alone[0].replace("\n", "\\n"))
    assert out.splitlines()[1:] != [printable(answer.replace("\n", "\\n")) for answer in alone[1:]]
    assert " ".join(err.split()).startswith(chat.TURNS_BY_CHOICE)


def test_a_model_of_chats_finds_earlier_turns_where_training_had_them(
    loaded: LoadedModel, run_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    model = replace(scripted(loaded, lambda prompt: seen.append(prompt) or "네"), trained_on_turns=True)
    _piped(monkeypatch, model, run_path, "하나\n둘\n/new\n셋\n")
    assert " ".join(capsys.readouterr().err.split()) == chat.TURNS
    asked = [text.split("### Instruction:\n")[1].split("\n\n### Response:")[0] for text in seen]
    assert asked == ["하나", "User: 하나\n\nAssistant: 네\n\nUser: 둘", "셋"]
    seen.clear()
    _piped(monkeypatch, model, run_path, "하나\n둘\n", keep_turns=False)
    assert [text.split("### Instruction:\n")[1].split("\n\n")[0] for text in seen] == ["하나", "둘"]
    assert " ".join(capsys.readouterr().err.split()) == chat.ALONE_BY_CHOICE


@pytest.mark.parametrize(("held", "keeps"), [(None, False), (0, False), (9, False), (10, True), (100, True)])
def test_turns_are_kept_if_a_tenth_of_the_rows_held_some(tmp_path: Path, held: int | None, keeps: bool) -> None:
    (tmp_path / "prepare").mkdir()
    counted = {} if held is None else {"train_rows_with_turns": held}  # runs of earlier versions lack it
    write_json(tmp_path / "prepare" / "summary.json", {"train": 100, **counted})
    assert loaded_model._trained_on_turns(tmp_path) is keeps


def test_earlier_turns_are_remembered_until_there_is_no_room(
    loaded: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation = Conversation(scripted(loaded, echo), keep_turns=True)
    assert [conversation.say(f"질문 {i}").answer[0] for i in (1, 2, 3)] == ["1", "2", "3"]
    assert capsys.readouterr().err == ""
    used = loaded.prompt([*conversation.messages, *prompt_format.user_message("")]).shape[1]
    reply = conversation.say("a" * (512 - used - 39))  # with 40 tokens of answer one too many
    assert reply.answer.startswith("3번째: aaa")
    assert "dropped the oldest turn: the model has 512 positions" in capsys.readouterr().err.replace("\n", " ")
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 3
    conversation.say("b" * 200)
    assert "oldest turns: the model has" in capsys.readouterr().err.replace("\n", " ")
    assert loaded.prompt(conversation.messages[:-1]).shape[1] + 40 <= 512


def test_a_question_that_fills_the_model(loaded: LoadedModel) -> None:
    conversation = Conversation(scripted(loaded, lambda _: "네" * 40), keep_turns=True)
    conversation.say("하나")
    room = 512 - loaded.prompt(prompt_format.user_message("")).shape[1]
    reply = conversation.say("a" * (room - 9))
    assert (reply.answer, reply.stopped, reply.tokens) == ("네네네", False, 9)
    before = conversation.messages
    with pytest.raises(DataError, match="512 tokens, which leaves none of the model's 512 positions"):
        conversation.say("a" * room)
    assert conversation.messages == before
    with pytest.raises(DataError, match="not UTF-8"):
        conversation.say("\udcff")


def test_ctrl_c_ends_the_answer_and_not_the_chat(loaded: LoadedModel) -> None:
    model = scripted(loaded, echo)
    conversation = Conversation(model, keep_turns=True)
    pieces: list[str] = []

    def press(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signals.handle)
    try:
        with answers_shown.ctrl_c_stops() as interrupted:
            reply = conversation.say(ENDLESS, write=press, interrupted=interrupted)
        assert (reply.answer, reply.stopped, interrupted()) == ("가나다", False, True)
        assert conversation.messages[-1]["content"] == "가나다"
        assert conversation.say("다음").answer == "2번째: 다음"
        with answers_shown.ctrl_c_stops() as interrupted:  # pressed twice, it is meant
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupted()
            with pytest.raises(Interrupted):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signals.handle
    finally:
        signal.signal(signal.SIGINT, before)


# --- standard input and terminal


def _piped(
    monkeypatch: pytest.MonkeyPatch, model: LoadedModel, run_path: Path, text: str, keep_turns: bool | None = None
) -> None:
    monkeypatch.setattr(chat, "load", lambda *_, **__: model)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
    chat.chat(run_path, Path(), Asking(temperature=0.0), keep_turns=keep_turns)


def test_a_pipe_gets_an_answer_a_line(
    loaded: LoadedModel, run_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _piped(monkeypatch, scripted(loaded, echo), run_path, "하나\n\n둘\n/new\n셋\n/nosuch\n/quit\n넷\n", keep_turns=True)
    out, err = capsys.readouterr()
    assert out.splitlines() == ["1번째: 하나", "2번째: 둘", "1번째: 셋", "2번째: /nosuch"]
    assert " ".join(err.split()) == chat.TURNS_BY_CHOICE
    _piped(monkeypatch, scripted(loaded, lambda _: "a\nb\x1b[2J\x9bc\n\n"), run_path, "?\n?")
    assert capsys.readouterr().out == "a\\nb\\x1b[2J\\x9bc\n" * 2
    with pytest.raises(DataError, match="the question has"):
        _piped(monkeypatch, loaded, run_path, "가" * 200)


def test_a_pipe_gets_the_answers_of_base_and_tuned(
    loaded: LoadedModel, run_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = BothModels(scripted(loaded, echo), scripted(loaded, lambda _: "a\tb\nc"), "with the same prompt")
    monkeypatch.setattr(chat, "_both", lambda *_: both)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("하나\n둘\n/new\n셋\n".encode()), encoding="utf-8"))
    chat.chat(run_path, Path(), Asking(compares=True), keep_turns=True)
    assert capsys.readouterr().out.splitlines() == [
        f"a\\tb\\nc\t{tuned}" for tuned in ("1번째: 하나", "2번째: 둘", "1번째: 셋")
    ]


def test_a_pipe_that_is_no_text(loaded: LoadedModel, run_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "load", lambda *_, **__: loaded)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    with pytest.raises(DataError, match="standard input is not UTF-8"):
        chat.chat(run_path, Path(), Asking(temperature=0.0))


_ON_A_TERMINAL = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without Ctrl-C
os.close(os.open(sys.argv.pop(1), os.O_RDWR))  # the session's first terminal becomes its own: Ctrl-C reaches it
from appliance.cli import app as cli_app
from appliance.cli import chat
{load}
cli_app.main()
"""
_SCRIPTED = """
from tests.serving.test_chat import echo, scripted
load = chat.load
chat.load = lambda *a, **k: scripted(load(*a, **k), echo, pause=0.02)
"""


class Terminal:
    """A chat on a pseudo-terminal, and someone who types."""

    def __init__(self, run_path: Path, load: str, term: str = "dumb") -> None:
        self._screen, self._far = pty.openpty()
        command = [sys.executable, "-c", _ON_A_TERMINAL.format(load=load), os.ttyname(self._far), "chat", str(run_path)]
        self.process = subprocess.Popen(
            [*command, "--max-new-tokens", "250", "--turns"],
            stdin=self._far,
            stdout=self._far,
            stderr=self._far,
            start_new_session=True,
            env=os.environ | {"TERM": term, "PYTHONUTF8": "1"},
            cwd=Path(__file__).parents[2],
        )

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def until(self, wanted: str) -> str:
        """What the screen shows next, up to and with `wanted`."""
        seen = b""
        while wanted.encode() not in seen:
            ready, _, _ = select.select([self._screen], [], [], 90)
            assert ready, seen.decode(errors="replace")
            seen += os.read(self._screen, 1)
        return seen.decode(errors="replace").replace("\r", "")

    def until_keys_are_read(self) -> None:
        """Until keys are read one by one: before that, the terminal itself takes Ctrl-D for the end of a line."""
        for _ in range(900):
            if not termios.tcgetattr(self._far)[3] & termios.ICANON:
                return
            time.sleep(0.1)
        raise AssertionError("the terminal still reads whole lines")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._screen)
        os.close(self._far)


@pytest.fixture
def terminal(run_path: Path) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []
    yield lambda load, **more: made.append(Terminal(run_path, load, **more)) or made[-1]
    for one in made:
        one.close()


@pytest.mark.slow
def test_on_a_terminal(terminal: Callable[..., Terminal]) -> None:
    opened = terminal(_SCRIPTED)
    assert "/help lists the commands" in opened.until("you> ")
    opened.type("하나\n")
    assert "1번째: 하나\n\n" in opened.until("you> ")
    opened.type("둘\n")
    assert "2번째: 둘\n" in opened.until("you> ")
    opened.type("/new\n")
    opened.until("you> ")
    opened.type(f"{ENDLESS}\n")
    opened.until("가나다")
    opened.type("\x03")
    rest = opened.until("you> ")
    assert "\ufffd" not in rest
    assert rest.count("가나다라") < 10
    opened.type("/bse hello\n")
    assert "there is no command /bse\nFix: /help lists them" in opened.until("you> ")
    opened.type("가" * 200 + "\n")
    assert "positions" in opened.until("you> ")
    opened.type("셋\n")
    assert "2번째: 셋\n" in opened.until("you> ")  # the stopped answer is a turn
    opened.until_keys_are_read()
    opened.type("\x04")
    assert opened.process.wait(30) == 0


_REPEATING = """
class Repeating:
    keeps_turns, messages = False, ()
    def __init__(self, model, **_): self.model = model
    def say(self, question, *_, write, **__):
        write(f"asked {question!r}")
        return type("Reply", (), {"stopped": True, "answer": question})
chat.Conversation, chat.load = Repeating, lambda *a, **k: type("Model", (), {"trained_on_turns": False})
"""


def test_ctrl_c_at_the_prompt_ends(terminal: Callable[..., Terminal]) -> None:
    opened = terminal(_REPEATING)
    opened.until("you> ")
    time.sleep(0.5)  # Python does not wake up for a signal between showing the prompt and waiting for keys
    opened.type("\x03")
    assert "Error" not in opened.until("Ctrl-D or /quit also ends a chat")
    assert opened.process.wait(30) == 130


def test_pasted_lines_are_one_question(terminal: Callable[..., Terminal]) -> None:
    opened = terminal(_REPEATING, term="xterm")
    opened.until("you>")
    opened.type("\x1b[200~첫 줄\n둘째 줄\x1b[201~")
    opened.type("\r")
    opened.until(r"asked '첫 줄\n둘째 줄'")
    opened.type("/etc/hosts?\r")
    opened.until("asked '/etc/hosts?'")
