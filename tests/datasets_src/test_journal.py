"""The journal of replies: what is paid for twice (nothing)."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from datasets_src.generators import journal
from datasets_src.generators.journal import Request, Unusable
from datasets_src.pairs import SourceError
from tests.datasets_src.test_self_instruct import inventive, made


class Model:
    """Answers with the prompt and a number; stops by an exception after `until` replies."""

    def __init__(self, until: int = 10**9) -> None:
        self.until = until
        self.asked: list[str] = []

    def __call__(self, requests: Sequence[Request], keep: Callable[[int, str], None]) -> None:
        for i, request in enumerate(requests):
            if len(self.asked) == self.until:
                raise ConnectionError("gone")
            self.asked.append(request.prompt)
            keep(i, f"{request.prompt}/{request.attempt}")


@contextmanager
def kept(path: Path, backend: Model, **asked_with: object) -> Iterator[journal.Journal]:
    with journal.opened(path, backend, asked_with or {"model": "m"}) as found:
        yield found


def test_a_run_that_was_stopped_asks_only_for_the_rest(tmp_path: Path) -> None:
    path, prompts = tmp_path / "j", [f"질문 {i}" for i in range(9)]
    first, second = Model(until=4), Model()
    with pytest.raises(ConnectionError), kept(path, first) as open_journal:
        open_journal.ask(prompts)
    with kept(path, second) as open_journal:
        assert open_journal.known == 4
        assert open_journal.ask(prompts) == [f"{prompt}/0" for prompt in prompts]
        assert (open_journal.asked, open_journal.reused) == (5, 4)
    assert first.asked + second.asked == prompts


def test_the_same_prompt_asked_for_again_is_asked_again_once(tmp_path: Path) -> None:
    for model in (Model(), Model()):
        with kept(tmp_path / "j", model) as open_journal:
            assert open_journal.ask(["a", "a"]) + open_journal.ask(["a"]) == ["a/0", "a/1", "a/2"]
    assert model.asked == []


def test_another_model_or_parameter_is_asked_anew(tmp_path: Path) -> None:
    with kept(tmp_path / "j", Model(), model="m", temperature=0.7) as open_journal:
        open_journal.ask(["a"])
    for parameters in ({"model": "n", "temperature": 0.7}, {"model": "m", "temperature": 1.0}):
        with kept(tmp_path / "j", model := Model(), **parameters) as open_journal:
            open_journal.ask(["a"])
        assert model.asked == ["a"]
    with kept(tmp_path / "j", model := Model(), temperature=0.7, model="m") as open_journal:
        open_journal.ask(["a"])
    assert model.asked == []


@pytest.mark.parametrize(
    "torn", [b'{"key": "abc", "rep', b'{"key": "1", "prompt": "", "reply": "x", "unusable": null}', b"\xec\x95"]
)
def test_a_half_written_last_line_is_ignored_and_overwritten(torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / "j"
    with kept(path, Model()) as open_journal:
        open_journal.ask(["a"])
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with kept(path, model := Model()) as open_journal:
        assert open_journal.ask(["a", "b"]) == ["a/0", "b/0"]
    assert model.asked == ["b"]
    assert path.read_bytes().startswith(whole)
    assert [json.loads(line)["reply"] for line in path.read_bytes().splitlines()] == ["a/0", "b/0"]


def test_a_line_that_the_disk_has_no_room_for_leaves_no_half_of_it(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with kept(path, Model()) as open_journal:
        open_journal.ask(["a"])
        whole = path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, limits[1]))
        try:
            with pytest.raises(OSError, match="too large"):
                open_journal.ask(["b"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)
        assert path.read_bytes() == whole
        assert open_journal.ask(["c"]) == ["c/0"]
    with kept(path, model := Model()) as open_journal:
        open_journal.ask(["a", "c"])
    assert model.asked == []


def test_a_damaged_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_text('{"key": 1}\n{"x": 2}\n', encoding="utf-8")
    with pytest.raises(SourceError, match="line 1: expected one reply"), kept(path, Model()):
        pass
    assert path.read_text(encoding="utf-8") == '{"key": 1}\n{"x": 2}\n'


def test_an_unusable_reply_is_unusable_again(tmp_path: Path) -> None:
    def model(_requests: Sequence[Request], keep: Callable[[int, str], None]) -> None:
        keep(0, Unusable("half \ud800", "cut"))

    for _ in range(2):
        with journal.opened(tmp_path / "j", model, {}) as open_journal:
            (reply,) = open_journal.ask(["a"])
        assert isinstance(reply, Unusable)
        assert (reply, reply.reason) == ("half ?", "cut")


def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "j"
    code = f"""
import sys
from pathlib import Path
from datasets_src.pairs import SourceError
from datasets_src.generators.journal import opened
try:
    with opened(Path({str(path)!r}), None, {{}}):
        pass
except SourceError as error:
    sys.exit(str(error))
"""
    with kept(path, Model()):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (other.returncode, "is open in another process" in other.stderr) == (1, True)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_journal_without_a_reply_does_not_stay(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError), kept(tmp_path / "j", Model(until=0)) as open_journal:
        open_journal.ask(["a"])
    assert not list(tmp_path.iterdir())


def test_what_is_paid_for_can_be_counted_without_touching_it(tmp_path: Path) -> None:
    path = tmp_path / "j"
    assert journal.paid_for(path, {"model": "m"}, ["a"]) == 0
    with kept(path, Model()) as open_journal:
        open_journal.ask(["a"])
    assert journal.paid_for(path, {"model": "m"}, ["a", "b"]) == 1
    assert journal.paid_for(path, {"model": "n"}, ["a", "b"]) == 0


def test_a_generator_that_was_stopped_makes_the_same_rows_and_asks_nothing_twice(tmp_path: Path) -> None:
    class Inventive(Model):
        def __call__(self, requests: Sequence[Request], keep: Callable[[int, str], None]) -> None:
            super().__call__(requests, lambda i, _reply: keep(i, inventive([requests[i].prompt])[0]))

    asked = []
    for until in (3, 17, 30, 10**9):
        model = Inventive(until)
        try:
            with kept(tmp_path / "j", model) as open_journal:
                rows, _ = made(open_journal.ask, 30)
        except ConnectionError:
            pass
        asked += model.asked
    assert rows == made(inventive, 30)[0]
    assert len(asked) == len(set(asked)) > 30
