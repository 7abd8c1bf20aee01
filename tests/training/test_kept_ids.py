"""The ids that prepare keeps are those of a fresh encoding, and are used only where they hold."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from appliance.errors import DataError
from appliance.pipeline import prepare
from appliance.prompt import format as prompt_format
from appliance.prompt.encoding import Encoding
from appliance.prompt.format import Prompt
from appliance.recipe.fields import DataSection
from appliance.rows import csv_file
from appliance.tasks import causal
from appliance.training import encoded_rows, kept_ids
from tests.conftest import write_qa

SIDES = ("train", "val", "test")


@pytest.fixture(scope="module")
def prompt(base_dir: Path) -> Prompt:
    return prompt_format.from_folder("alpaca", base_dir)


def prepared(folder: Path, prompt: Prompt, **data: Any) -> Path:
    """Rows of many lengths, one of them with a special token, which is rejected; all are dropped above 300 tokens."""
    draw = random.Random(3)
    rows = [(f"질문 {i}? " + "가" * draw.randrange(60), "답 " * draw.randrange(1, 40)) for i in range(90)]
    rows[40] = (f"stop {prompt.eos_token}", "a special token")
    (folder / "prepare").mkdir()
    prepare.run(
        csv_path=write_qa(folder / "rows.csv", rows),
        data=DataSection(csv="rows.csv", on_bad_row="drop", **{"on_too_long": "drop", **data}),
        prompt=prompt,
        max_seq_length=300,
        longest_possible=512,
        seed=5,
        stage_dir=folder / "prepare",
    )
    return folder / "prepare"


def fresh(prompt: Prompt, path: Path, encoding: Encoding) -> list[prompt_format.Encoded]:
    rows = csv_file.iter_canonical(path)
    return [encoding.encode(prompt, row.instruction, row.input, row.output) for row in rows]


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("a row was encoded again")


@pytest.mark.parametrize("data", [{}, {"split": "notebook"}, {"on_too_long": "cut"}], ids=["group", "notebook", "cut"])
@pytest.mark.parametrize("rows_per_batch", [7, 1024])
def test_kept_ids_are_those_of_a_fresh_encoding(
    data: dict[str, Any], rows_per_batch: int, prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_ids, "_BATCH_ROWS", rows_per_batch)
    if rows_per_batch == 7:
        monkeypatch.setattr(kept_ids, "_SPAN", 0)  # as for rows that lie far apart
    folder = prepared(tmp_path, prompt, **data)
    cuts = data.get("on_too_long") == "cut"
    encodings = [Encoding(loss_on, 300, cuts) for loss_on in ("answer", "all")]
    for path in (folder / f"{side}.csv" for side in SIDES):
        wanted = [fresh(prompt, path, encoding) for encoding in encodings]
        assert wanted[0]
        lines = [row.line for row in csv_file.iter_canonical(path)]
        with monkeypatch.context() as patch:
            patch.setattr(Prompt, "encode", never)
            for encoding, rows in zip(encodings, wanted, strict=True):
                encoded, known = encoded_rows.read(prompt, path, encoding, task=causal.TASK)
                assert encoded == rows
                assert (known.lines, known.lengths) == (lines, [len(row) for row in rows])
                with monkeypatch.context() as small:
                    small.setattr(encoded_rows, "_BATCH", rows_per_batch)
                    dataset, told = encoded_rows.as_dataset(prompt, path, encoding, task=causal.TASK)
                assert list(dataset) == [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]
                assert told == known
            some, known = encoded_rows.read(prompt, path, encodings[0], task=causal.TASK, only=lines[1::2])
            assert (some, known.lines) == (wanted[0][1::2], lines[1::2])


def _other_format(_: Path, prompt: Prompt) -> Prompt:
    return replace(prompt, name="korean_qa", chat_template=prompt_format.chat_template("korean_qa"))


def _other_tokenizer(_: Path, prompt: Prompt) -> Prompt:
    other = Tokenizer.from_str(prompt.backend.to_str())
    other.add_tokens(["질문"])
    return replace(prompt, backend=other)


def _other_eos(_: Path, prompt: Prompt) -> Prompt:
    assert prompt.pad_token
    return replace(prompt, eos_token=prompt.pad_token)


def _edited_csv(path: Path, prompt: Prompt) -> Prompt:
    path.write_text(path.read_text(encoding="utf-8").replace("질문", "물음"), encoding="utf-8")
    return prompt


def _no_ids(path: Path, prompt: Prompt) -> Prompt:
    kept_ids.beside(path).unlink()
    return prompt


def _half_the_ids(path: Path, prompt: Prompt) -> Prompt:
    kept = kept_ids.beside(path)
    kept.write_bytes(kept.read_bytes()[: kept.stat().st_size // 2])
    return prompt


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_other_format, "another tokenizer or prompt format"),
        (_other_tokenizer, "another tokenizer or prompt format"),
        (_other_eos, "another tokenizer or prompt format"),
        (_edited_csv, "train.csv is not the file that they were prepared with"),
        (_no_ids, "none are kept with it"),
        (_half_the_ids, "train_ids.arrow cannot be read"),
    ],
)
def test_rows_are_encoded_again_if_their_ids_do_not_hold(
    change: Callable[[Path, Prompt], Prompt],
    told: str,
    prompt: Prompt,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = prepared(tmp_path, prompt) / "train.csv"
    used = change(path, prompt)
    encoding = Encoding("answer", 2048, cut_long_rows=False)
    with caplog.at_level(logging.INFO):
        encoded, _ = encoded_rows.read(used, path, encoding, task=causal.TASK)
    assert encoded == fresh(used, path, encoding)
    assert "its rows are encoded again: " in caplog.text
    assert told in caplog.text


def test_kept_ids_over_the_limit_are_refused_by_their_line(prompt: Prompt, tmp_path: Path) -> None:
    path = prepared(tmp_path, prompt) / "val.csv"
    with pytest.raises(DataError, match=r"val\.csv: row \d+ has \d+ tokens, over max_seq_length 8"):
        encoded_rows.read(prompt, path, Encoding("answer", 8, cut_long_rows=False), task=causal.TASK)


def test_nothing_but_the_ids_is_left_of_the_spool(prompt: Prompt, tmp_path: Path) -> None:
    folder = prepared(tmp_path, prompt)
    assert sorted(path.name for path in folder.glob("*arrow*")) == sorted(f"{side}_ids.arrow" for side in SIDES)
    assert not list(folder.glob(".*"))
