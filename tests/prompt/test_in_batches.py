"""Rows encoded at once, around a frame rendered once, are those that the template and the tokenizer give one by one."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import DataError
from appliance.prompt import format as prompt_format
from appliance.prompt import in_batches
from appliance.prompt.format import NotTokenized, Prompt, user_message
from appliance.prompt.templates import _TEMPLATES, IN_INPUT

# What could change the text around it: the markers and parts of them, line ends, Jinja's own signs, decomposed Hangul.
PIECES = ["", "가격은?", "\n", "\n\n", "### Input:", "\n\n### Input:", "\n\n### Input:\n", " ### Input: ", "###",
          "{{ x }}{% y %}", "ᄀ\u1161", " 끝 "]  # fmt: skip


@pytest.fixture(scope="module", params=sorted(_TEMPLATES.keys() - IN_INPUT))
def prompt(request: pytest.FixtureRequest, base_dir: Path) -> Prompt:
    return prompt_format.from_folder(request.param, base_dir)


def test_the_frame_is_what_the_template_renders(prompt: Prompt) -> None:
    for first, last, input_text in product(PIECES, PIECES, PIECES):
        instruction = first + "무엇" + last
        text, answer = prompt.texts(instruction, input_text, "답")
        assert text == prompt.text(user_message(instruction, input_text))
        assert answer == prompt.answer_lead + "답"


def _one_by_one(prompt: Prompt, rows: list[in_batches.Cells]) -> list[Any]:
    found: list[Any] = []
    for cells in rows:
        try:
            row = prompt.encode(*cells)
        except DataError as error:
            found.append((type(error), str(error)))
        else:
            found.append((row.input_ids, row.prompt_tokens))
    return found


def _at_once(prompt: Prompt, rows: list[in_batches.Cells]) -> list[Any]:
    found = in_batches.encode(prompt, rows)
    return [(type(one), str(one)) if isinstance(one, DataError) else one for one in found]


def test_a_batch_is_encoded_as_its_rows_are_one_by_one(prompt: Prompt) -> None:
    rows = [(f"질문 {piece}", other, f"답 {piece}") for piece, other in product(PIECES, PIECES[:6])]
    rows[3] = (f"a {prompt.eos_token}", "", "in the question")
    rows[5] = ("in the answer", "그", f"b {prompt.eos_token}")
    rows[7] = ("<|question|>", "", "a marker of one of the formats")
    found = _at_once(prompt, rows)
    assert found == _one_by_one(prompt, rows)
    faults = [number for number, one in enumerate(found) if one[0] is DataError]
    assert faults == ([3, 5, 7] if prompt.name == "qa_tokens" else [3, 5])


def test_a_batch_that_the_tokenizer_fails_on_names_the_row(prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer gives up on a whole batch, without a word about which of its texts it was."""
    backend, encode = prompt.backend, Prompt._ids

    class GivesUp:
        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def encode_batch_fast(self, *_: Any, **__: Any) -> Any:
            raise Exception("backtrack limit")

    def ids(self: Prompt, text: str) -> list[int]:
        if "둘" in text:
            raise NotTokenized("the base's tokenizer fails on it: backtrack limit")
        return encode(self, text)

    rows = [("하나", "", "답"), ("둘", "", "답"), ("셋", "", "답")]
    wanted = _one_by_one(prompt, rows)
    monkeypatch.setitem(vars(prompt), "backend", GivesUp())
    monkeypatch.setattr(Prompt, "_ids", ids)
    found = _at_once(prompt, rows)
    assert [found[0], found[2]] == [wanted[0], wanted[2]]
    assert found[1] == (NotTokenized, "the base's tokenizer fails on it: backtrack limit")
