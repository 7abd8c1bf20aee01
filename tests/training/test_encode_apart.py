"""A base's tokenizer or chat template that explodes on one row only: the row is named, and this process goes on."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import EnvironmentUnavailable
from appliance.pipeline import prepare
from appliance.process.files import write_json
from appliance.prompt import format as prompt_format
from appliance.prompt import in_batches, tokenizer
from appliance.prompt.format import Prompt
from appliance.recipe.fields import DataSection
from appliance.rows.csv_file import Row
from appliance.training import encode_apart, encoded_rows, kept_ids
from appliance.training.encode_apart import Limits
from tests.conftest import write_qa
from tests.helpers.models import tiny_tokenizer

LINE = 7
BOMB = "Ω" + ("q" * 22 + " ") * 2000  # the only row with a q or an Ω
TEMPLATE = (
    "{{% for m in messages %}}{{{{ m['role'] }}}}: {{{{ m['content'] }}}}"
    "{{% if 'Ω' in m['content'] %}}{bomb}{{% endif %}}"
    "{{% if m['role'] == 'assistant' %}}{{{{ eos_token }}}}{{% endif %}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}assistant: {{% endif %}}"
)
TOO_LONG, TOO_LARGE = "did not end within 0.5 s of computing", "took more than 256 MiB of memory"


def _normalizer(pattern: dict[str, str], content: str, times: int = 1) -> Callable[[Path], object]:
    step = {"type": "Replace", "pattern": pattern, "content": content}

    def spoil(folder: Path) -> None:
        found = json.loads((folder / tokenizer.FILE).read_text(encoding="utf-8"))
        found["normalizer"] = {"type": "Sequence", "normalizers": [step] * times}
        write_json(folder / tokenizer.FILE, found)

    return spoil


def _template(bomb: str) -> Callable[[Path], object]:
    return lambda folder: (folder / tokenizer.TEMPLATE).write_text(TEMPLATE.format(bomb=bomb), encoding="utf-8")


# What is spoilt, how, the prompt format, and what the message says.
BOMBS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a pattern that takes years": (_normalizer({"Regex": "(q+)+z"}, ""), "alpaca", f"the tokenizer {TOO_LONG}"),
    "a rewriting that multiplies": (
        _normalizer({"String": "Ω"}, "Ω" * 1000, times=4), "alpaca", f"the tokenizer {TOO_LARGE}",
    ),
    "a template that loops": (
        _template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
        "chat", f"the chat template {TOO_LONG}",
    ),
    "a template that never lets go of the interpreter": (
        _template("{{ ((m['content'] | length) ** 1000000000) is odd }}"), "chat", f"the chat template {TOO_LONG}",
    ),
    "a template that multiplies": (
        _template("{{ m['content'] * 10 ** 6 }}"), "chat", f"the chat template {TOO_LARGE}",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        encode_apart, "LIMITS", Limits(cpu_seconds=0.5, letters_per_second=1e9, wall_factor=200, memory_bytes=256 << 20)
    )


def _rows(folder: Path) -> Path:
    rows = [(f"질문 {number}?", f"답 {number}") for number in range(40)]
    rows[LINE - 2] = (BOMB, "답")
    return write_qa(folder / "rows.csv", rows)


def _prepare(folder: Path, csv_path: Path, prompt: Prompt) -> Path:
    (folder / "prepare").mkdir(exist_ok=True)
    prepare.run(
        csv_path=csv_path,
        data=DataSection(csv=str(csv_path), on_too_long="drop"),
        prompt=prompt,
        max_seq_length=300,
        longest_possible=512,
        seed=5,
        stage_dir=folder / "prepare",
    )
    return folder / "prepare"


def _prompt(folder: Path, spoil: Callable[[Path], object], name: str) -> Prompt:
    tiny_tokenizer().save_pretrained(folder / "base")
    (folder / "base" / "config.json").write_text('{"vocab_size": 320}', encoding="utf-8")
    spoil(folder / "base")
    return prompt_format.from_folder(name, folder / "base")


@pytest.fixture(autouse=True)
def no_fork_stays() -> Iterator[None]:
    before = _children()
    yield
    assert _children() == before


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()


@pytest.mark.parametrize("bomb", BOMBS)
def test_prepare_names_the_row_on_which_a_base_explodes(
    tmp_path: Path, bomb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, name, seen = BOMBS[bomb]
    if seen.endswith(TOO_LARGE):  # on a slow machine that takes its time, too
        monkeypatch.setattr(encode_apart, "LIMITS", replace(encode_apart.LIMITS, cpu_seconds=20))
    csv_path, before = _rows(tmp_path), csv_bytes(tmp_path)
    with pytest.raises(EnvironmentUnavailable) as caught:
        _prepare(tmp_path, csv_path, _prompt(tmp_path, spoil, name))
    assert str(caught.value).replace(" of the base model", "") == f"{seen} on line {LINE} of {csv_path}"
    assert caught.value.hint.endswith(f"or remove line {LINE} of {csv_path}")
    assert csv_bytes(tmp_path) == before


def csv_bytes(folder: Path) -> bytes:
    return (folder / "rows.csv").read_bytes()


def test_a_row_encoded_again_is_watched_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and evaluation, if the ids were not kept or came from another tokenizer."""
    monkeypatch.setattr(encode_apart, "LIMITS", replace(encode_apart.LIMITS, cpu_seconds=20))  # as above
    stage_dir = _prepare(tmp_path, write_qa(tmp_path / "rows.csv", [(f"Ω {n}?", "답") for n in range(40)]),
                         _prompt(tmp_path, lambda _: None, "alpaca"))  # fmt: skip
    spoil, name, seen = BOMBS["a rewriting that multiplies"]
    with pytest.raises(EnvironmentUnavailable, match=seen.replace("the tokenizer", "the tokenizer of the base model")):
        list(encoded_rows.uncut(_prompt(tmp_path, spoil, name), stage_dir / "train.csv", loss_on="answer"))


def test_rows_encoded_again_are_those_of_prepare(tmp_path: Path) -> None:
    prompt = _prompt(tmp_path, lambda _: None, "korean_qa")
    train = _prepare(tmp_path, _rows(tmp_path), prompt) / "train.csv"
    kept = list(encoded_rows.uncut(prompt, train, loss_on="all"))
    kept_ids.beside(train).unlink()
    assert list(encoded_rows.uncut(prompt, train, loss_on="all")) == kept


def test_a_batch_without_one_row_to_blame_names_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the kernel had ended the fork: memory may run out on a machine, and not for one of the rows."""
    prompt, rows = _prompt(tmp_path, lambda _: None, "alpaca"), [Row(line, "질문", "", "답") for line in range(2, 9)]

    def killed(*_: Any) -> list[Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []

    monkeypatch.setattr(in_batches, "encode", killed)
    with pytest.raises(EnvironmentUnavailable, match=r"was killed by SIGKILL.* on lines 2 to 8 of rows\.csv"):
        list(encode_apart.ids(prompt, rows, Path("rows.csv")))


def test_a_fork_that_gets_no_turn_ends_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_apart, "LIMITS", Limits(cpu_seconds=0.2, letters_per_second=1e9, wall_factor=1))
    monkeypatch.setattr(in_batches, "encode", lambda *_: time.sleep(600))
    prompt = _prompt(tmp_path, lambda _: None, "alpaca")
    with pytest.raises(EnvironmentUnavailable, match=r"did not end within 0\.2 s on line 2 of rows\.csv"):
        list(encode_apart.ids(prompt, [Row(2, "질문", "", "답")], Path("rows.csv")))
