"""One way from a row to the ids that training fits: prepared rows, val rows once more, a replay."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from appliance.errors import DataError
from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.prompt.encoding import Encoding
from appliance.tasks import causal
from appliance.training import encoded_rows

ROOT = Path(__file__).parents[2]
CELLS = ("가격은?", "", "천 원입니다. " * 20)


@pytest.fixture
def prompt(base_dir: Path) -> prompt_format.Prompt:
    return prompt_format.from_folder("alpaca", base_dir)


def test_a_long_row_is_cut_only_if_rows_are_cut(prompt: prompt_format.Prompt) -> None:
    whole = prompt.encode(*CELLS)
    limit = len(whole) - 5
    assert Encoding("answer", limit, cut_long_rows=False).encode(prompt, *CELLS) == whole
    cut = Encoding("answer", limit, cut_long_rows=True).encode(prompt, *CELLS)
    assert (len(cut), cut.input_ids[-1], cut.labels[-1]) == (limit, prompt.eos_token_id, prompt.eos_token_id)
    assert cut.input_ids[:-1] == whole.input_ids[: limit - 1]


def test_the_prompt_is_trained_on_if_the_recipe_says_so(prompt: prompt_format.Prompt) -> None:
    encoding = Encoding("all", 4096, cut_long_rows=True)
    assert encoding.encode(prompt, *CELLS) == prompt.encode(*CELLS, loss_on="all") != prompt.encode(*CELLS)


def test_rows_are_chosen_by_their_line_and_refused_if_too_long(prompt: prompt_format.Prompt, tmp_path: Path) -> None:
    path = tmp_path / "val.csv"
    files.write_text(path, "row,instruction,input,output\n2,가?,,하나\n3,나?,,둘\n7,다?,,셋\n")
    encoded, rows = encoded_rows.read(
        prompt, path, Encoding("answer", 512, cut_long_rows=False), task=causal.TASK, only=[7, 2]
    )
    assert (rows.lines, rows.lengths) == ([2, 7], [len(one) for one in encoded])
    assert encoded[1] == prompt.encode("다?", "", "셋")
    with pytest.raises(DataError, match=r"val\.csv: row 2 has \d+ tokens, over max_seq_length 8"):
        encoded_rows.read(prompt, path, Encoding("answer", 8, cut_long_rows=False), task=causal.TASK)


def test_rows_are_cut_in_one_place() -> None:
    """Whoever cuts rows on their own drifts from what was trained."""
    callers = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "appliance").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "cut"
    }
    assert callers == {"appliance/prompt/encoding.py"}
