"""What an encoder would see little or nothing of is said: texts in another language, and rows that are too long."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import EnvironmentUnavailable
from appliance.pipeline import run as pipeline_run
from appliance.pipeline import windows
from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.prompt import tokenizer
from appliance.recipe import resolve
from appliance.rows import csv_file
from appliance.rows.csv_file import Row
from appliance.rundir.directory import RunDir
from tests.helpers.classifiers import POSITIONS, tiny_bert


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bases") / "bert")


def test_a_base_of_another_language_finds_no_answers(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = prompt_format.from_transformers("context", tokenizer.load(base))

    def judge(text: str) -> str:
        with csv_file.row_writer(tmp_path / "test.csv", placed=True) as write:
            for line in range(2, 8):
                write(Row(line, "사과 ?", text, ""))
        windows.refuse_unread(tmp_path, prompt)
        return " ".join(capsys.readouterr().err.split())

    with pytest.raises(EnvironmentUnavailable, match="cannot spell 67% of the words of 6 test rows") as raised:
        judge("무엇을 어디에 찾으시나요 누가")
    assert "klue/bert-base" in raised.value.hint
    assert "cannot spell 25% of the words of 6 test rows" in judge("감 무엇을")
    assert judge("감 귤") == ""


def test_rows_that_are_too_long_are_left_out_with_their_number(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipes of encoders drop them: of long texts, that may be most of a file."""
    texts = ["사과 좋아요" + " 배" * (POSITIONS if i % 3 == 0 else 1) + f" {i}" for i in range(60)]
    rows = "".join(f"{text},{label}\n" for text, label in zip(texts, ["기쁨", "슬픔"] * 30, strict=True))
    (tmp_path / "train.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    settings = [f"model.id={base}", f"data.csv={tmp_path / 'train.csv'}"]
    resolved = resolve.load("bert-classify", overrides=settings, environ={})
    pipeline_run.run(resolved, RunDir(tmp_path / "run"), tmp_path / "cache", until="prepare")
    said = " ".join(capsys.readouterr().err.split())
    assert f"20 rows are too long for max_seq_length {POSITIONS} and left out: data.on_too_long=drop" in said
    assert "20 rejected (20 too long)" in said
    assert files.read_json(tmp_path / "run" / "prepare" / "summary.json")["too_long"] == 20
