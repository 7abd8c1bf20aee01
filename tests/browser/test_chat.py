"""The chat on a run's page: asked and answered by keyboard, in every look, and gone when its server is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.rundir import proven
from appliance.serving import loaded_model
from appliance.serving.loaded_model import LoadedModel
from tests.browser import accessibility
from tests.helpers.served import address, bound, served
from tests.helpers.shown_run import with_model
from tests.helpers.talking import make_run, scripted
from tests.helpers.watching import Watching, server

Visit = Callable[..., Any]
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>\u202e\x1b[2J"


def says(prompt: str) -> str:
    if "길게" in prompt:
        return "가나다라마바사 " * 60
    return f"우유는 1층입니다.\n{HOSTILE}" if "우유" in prompt else "x" * 100


@pytest.fixture(scope="module")
def model(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    run = make_run(tmp_path_factory.mktemp("made") / "shop", base_dir)
    return scripted(loaded_model.load(run, max_new_tokens=350, temperature=0.0), says, pause=0.001)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_model(tmp_path_factory.mktemp("runs") / "가게")


@pytest.fixture(scope="module")
def watching(run: Path, model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watching]:
    listening, folder = bound(), tmp_path_factory.mktemp("out")
    arguments = ("--runs-dir", str(run.parent), "--chat-server", address(listening))
    with (
        server(*arguments, cwd=folder) as found,
        served(model, name=run.name, made=proven.merged_at(run), listening=listening),
    ):
        yield found


def field(opened: Any) -> Any:
    found = opened.get_by_label("Your question")
    found.wait_for()
    return found


def ask(opened: Any, text: str) -> None:
    field(opened).fill(text)
    field(opened).press("Enter")


def answered(opened: Any) -> str:
    """What the model said last, once it has said it."""
    opened.get_by_role("button", name="Ask", exact=True).wait_for()
    return str(opened.locator("#chat .model .said").last.inner_text())


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_it_is_asked_by_keyboard_and_answers_with_text(
    width: int, scheme: str, watching: Watching, visit: Visit
) -> None:
    opened = visit(f"{watching.address}/runs/가게", width=width, scheme=scheme)
    assert "Chat" in opened.locator("header nav a").all_inner_texts()
    ask(opened, "우유는 어디에 있나요?")
    assert answered(opened) == "우유는 1층입니다.\n" + HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b")
    assert opened.locator("#chat .user .said").inner_text() == "우유는 어디에 있나요?"
    assert opened.locator("#chat img, #chat script").count() == 0
    assert opened.evaluate("document.activeElement.id") == "chat-question"
    ask(opened, "한 단어")
    assert answered(opened) == "x" * 100
    assert opened.get_by_text("asked alone: this model was trained on single questions").count() == 1
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert accessibility.violations(opened, "#chat") == []


def test_an_answer_grows_and_can_be_stopped(watching: Watching, visit: Visit) -> None:
    opened = visit(f"{watching.address}/runs/가게")
    ask(opened, "길게")
    said = opened.locator("#chat .model .said")
    lengths = set[int]()
    while len(lengths) < 4:
        lengths.add(len(said.inner_text()))
        opened.wait_for_timeout(20)
    opened.get_by_role("button", name="Stop", exact=True).click()
    assert 0 < len(answered(opened)) < len(says("길게").strip())
    assert opened.get_by_text("stopped", exact=True).is_visible()
    opened.get_by_role("button", name="New conversation").click()
    assert opened.locator("#chat .turn").count() == 0
    field(opened).fill("우유")
    field(opened).press("Shift+Enter")
    assert field(opened).input_value() == "우유\n"  # a line, not a question
    assert opened.locator("#chat .turn").count() == 0
    ask(opened, "우유")
    assert answered(opened).startswith("우유는 1층입니다.")


def test_without_a_server_the_command_is_there(run: Path, visit: Visit, tmp_path: Path) -> None:
    with server(str(run), "--chat-server", "http://127.0.0.1:9", cwd=tmp_path) as watching:
        opened = visit(f"{watching.address}/runs/가게", width=390, scheme="dark")
        opened.get_by_text("No server answers at http://127.0.0.1:9").wait_for()
        assert opened.locator("#chat pre").inner_text() == f"appliance serve '{run}'"
        assert not opened.get_by_label("Your question").is_visible()
        assert accessibility.violations(opened, "#chat") == []
        quiet = visit(f"{watching.address}/runs/가게", scripts=False)
        assert quiet.get_by_text("Without scripts nothing can be asked here").is_visible()
        opened.close()  # before the server ends, which a page takes for an error


def test_a_server_that_comes_is_found(run: Path, model: LoadedModel, visit: Visit, tmp_path: Path) -> None:
    listening = bound()
    taken = address(listening)
    with server(str(run), "--chat-server", taken, cwd=tmp_path) as watching:
        opened = visit(f"{watching.address}/runs/가게")
        opened.get_by_text("looking for a server").wait_for()
        began = time.monotonic()
        with served(model, name=run.name, made=proven.merged_at(run), listening=listening):
            field(opened)
            assert time.monotonic() - began < 30
            opened.close()
