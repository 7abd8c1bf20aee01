"""Labels and texts as people have them: which are classes, what a tokenizer makes of them, how many tokens fit."""

from __future__ import annotations

import csv
import json
import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from appliance.base_model.base import Base
from appliance.engines import engine, loaded
from appliance.errors import DataError, EnvironmentUnavailable
from appliance.pipeline import classes, prepare
from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.prompt import tokenizer
from appliance.prompt.encoding import Encoding
from appliance.prompt.format import Prompt
from appliance.recipe.fields import DataSection
from appliance.rows import csv_file, survey
from appliance.rows.csv_file import Row
from appliance.tasks.classify import Classify, class_of
from appliance.training import encoded_rows, kept_ids
from tests.conftest import read_csv
from tests.helpers.classifiers import KINDS, POSITIONS, tiny_bert, tiny_encoder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bases") / "bert")


@pytest.fixture(scope="module")
def prompt(base: Path) -> Prompt:
    return prompt_format.from_transformers("source", tokenizer.load(base))


def written(folder: Path, prompt: Prompt, labels: Sequence[str], *, on: str = "train", text: str = "사과") -> list[str]:
    """The classes of rows with these labels, which are all on one side."""
    for side in ("train", "val", "test"):
        with csv_file.row_writer(folder / f"{side}.csv") as write:
            for line, label in enumerate(labels if side == on else (), 2):
                write(Row(line, text, "", label))
    classes.write(folder, prompt)
    return [one["name"] for one in files.read_json(folder / "labels.json")["classes"]]


@pytest.mark.parametrize(
    "same",
    [
        ("슬픔", unicodedata.normalize("NFD", "슬픔")),
        ("슬픔", "슬픔 ", "\u3000슬픔\u00a0", "\t슬픔\n"),
        ("슬픔", "\ufeff슬픔", "슬픔\u200b", "\u2060 슬픔 \u200d"),
    ],
    ids=["composed or not", "white space", "no width"],
)
def test_labels_that_look_the_same_are_one_class(same: tuple[str, ...], prompt: Prompt, tmp_path: Path) -> None:
    assert written(tmp_path, prompt, ["기쁨"] * 6 + [label for label in same for _ in range(3)]) == ["기쁨", "슬픔"]


def labelled(path: Path, labels: Sequence[str]) -> DataSection:
    """A CSV with a text for each label."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "label"), *((f"사과 {i}", label) for i, label in enumerate(labels))])
    named = {"instruction": "text", "output": "label"}
    return DataSection.model_validate({"csv": str(path), "columns": named, "on_bad_row": "drop"})


def test_rows_name_their_class_in_one_way_however_it_was_typed(prompt: Prompt, tmp_path: Path) -> None:
    """A tokenizer that knows composed letters only makes one unknown word of all decomposed labels."""
    words = ("기쁨", "슬픔")
    typed = [form for word in words for form in (word, f" {word}\u200b", unicodedata.normalize("NFD", word))] * 5
    path = tmp_path / "labels.csv"
    data = labelled(path, [*typed, "\u200b \ufeff"])
    seen = survey.of_csv(path, data, 1, by_class=True)
    assert seen.classes == dict.fromkeys(words, 15)
    assert seen.bad == ((32, "column 'label': the answer is empty"),)
    assert seen.remarks == ()
    counts = prepare.run(
        csv_path=path,
        data=data,
        prompt=prompt,
        max_seq_length=None,
        longest_possible=POSITIONS,
        seed=1,
        stage_dir=tmp_path,
        by_class=True,
    )
    assert seen.sides == {"train": counts.train, "val": counts.val, "test": counts.test}
    classes.write(tmp_path, prompt)
    found = files.read_json(tmp_path / "labels.json")["classes"]
    assert [(one["name"], len(one["ids"]), sum(one["rows"].values())) for one in found] == [(w, 1, 15) for w in words]


def test_a_class_takes_nothing_of_the_tokens_that_a_text_may_have(prompt: Prompt, tmp_path: Path) -> None:
    """Labels of 23 tokens, beside texts of three; and one text that is too long by itself."""
    path = tmp_path / "labels.csv"
    names = [" ".join([word] * 22) for word in ("기쁨", "슬픔")]
    data = labelled(path, names * 9)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(f"{'사과 ' * 9},{names[0]}\n")
    counts = prepare.run(
        csv_path=path,
        data=data.model_copy(update={"on_too_long": "drop"}),
        prompt=prompt,
        max_seq_length=10,
        longest_possible=POSITIONS,
        seed=1,
        stage_dir=tmp_path,
        by_class=True,
    )
    (dropped,) = (row for row in read_csv(tmp_path / "rows.csv") if row["reason"])
    assert (dropped["row"], dropped["reason"]) == ("20", "11 tokens, over max_seq_length 10")
    texts = [prompt.encode(row["instruction"], "", row["output"]) for row in read_csv(tmp_path / "train.csv")]
    longest = max(one.prompt_tokens for one in texts)
    assert counts.longest_row_tokens == longest < 10 < min(len(one) for one in texts)
    classes.write(tmp_path, prompt)
    task, encoding = Classify().bound(tmp_path), Encoding("answer", longest, cut_long_rows=False)
    _, rows = encoded_rows.read(prompt, tmp_path / "train.csv", encoding, task=task)
    assert sorted(rows.lengths) == sorted(one.prompt_tokens for one in texts)
    assert kept_ids.lengths(tmp_path / "train.csv", of_prompts=True) == rows.lengths
    with pytest.raises(DataError, match=f"has {longest} tokens, over max_seq_length {longest - 1}"):
        encoded_rows.read(prompt, tmp_path / "train.csv", replace(encoding, max_seq_length=longest - 1), task=task)


def test_check_splits_by_class_as_prepare_does(tmp_path: Path) -> None:
    """Of 30 classes with four rows each, every class is on every side: half as many train rows as without classes."""
    data = labelled(tmp_path / "x.csv", [str(i % 30) for i in range(120)])
    assert survey.of_csv(tmp_path / "x.csv", data, 1, by_class=True).sides == {"train": 60, "val": 30, "test": 30}
    assert survey.of_csv(tmp_path / "x.csv", data, 1).sides == {"train": 96, "val": 12, "test": 12}
    data = labelled(tmp_path / "x.csv", [str(i % 30) for i in range(60)])
    too_few = survey.of_csv(tmp_path / "x.csv", data, 1, by_class=True).too_few
    assert "30 classes, the largest with 2 different questions (or groups), leave no row for val" in str(too_few)


def test_check_lists_the_classes_and_remarks_names_that_people_take_for_the_same() -> None:
    assert classes.findings({}) == []
    (found,) = classes.findings({"a": 1, "b": 30, "c": 2, "d": 3, "e": 4, "f": 5, "x" * 50: 1})
    assert (found.verdict, found.fix) == ("ok", "")
    assert found.found == "7: 'b' 30 rows, 'f' 5 rows, 'e' 4 rows, 'd' 3 rows, 'c' 2 rows and 2 more"
    for same in (
        ("1", "1.0"),
        ("Pos", "pos", "ＰＯＳ"),
        ("배송 문의", "배송\u00a0문의", "배송문의"),
        ("a\u200bb", "ab"),
    ):
        (found,) = classes.findings(dict.fromkeys([*same, "other", "2"], 9))
        assert found.verdict == "warning"
        assert found.found.splitlines()[1].endswith(": " + " and ".join(map(repr, sorted(same))))
    for different in (("1", "10"), ("1.5", "1"), ("C", "C++"), ("1", "v1.0"), ("😀", "😡"), ("-1", "1")):
        assert classes.findings(dict.fromkeys(different, 9))[0].verdict == "ok"


def test_a_long_label_does_not_flood_the_message(prompt: Prompt, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the same tokens of the labels") as raised:
        written(tmp_path, prompt, ["가" * 500, "각" * 500] * 3)
    assert len(str(raised.value)) < 200


def test_a_label_is_a_name_whatever_programs_take_it_for(prompt: Prompt, tmp_path: Path) -> None:
    names = ["0", "1", "the", "good", "bad", "?"]
    assert written(tmp_path, prompt, names * 3) == sorted(names)
    for name in ("LABEL_0", "nan", "NA", "None", "TRUE", "1.0", "01", "a\nb", 'b"c,d'):
        assert class_of(name) == name
    assert class_of("\u200b") == "\u200b"


def test_classes_called_as_a_base_calls_what_it_has_no_head_for_get_a_head(base: Path, tmp_path: Path) -> None:
    task = Classify(("LABEL_0", "LABEL_1"))
    shutil.copytree(base, tmp_path / "base")
    config = files.read_json(base / "config.json") | {"num_labels": 2, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    files.write_json(tmp_path / "base" / "config.json", config)
    _, info = task.load(tmp_path / "base", output_loading_info=True)
    loaded.judge(tmp_path / "base", task.found_in(tmp_path / "base", info))
    assert Classify(("a", "b", "c")).config(config)["num_labels"] == 3


def test_a_class_that_one_side_alone_has_is_named(
    prompt: Prompt, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, prompt, ["기쁨"] * 6 + ["슬픔"] * 6, on="val")
    said = " ".join(capsys.readouterr().err.split())
    assert "no train row has the classes '기쁨', '슬픔': they cannot be learnt" in said
    assert "no test row has the classes '기쁨', '슬픔': they cannot be tested" in said


def test_a_thousand_classes_are_possible_and_one_more_is_not(prompt: Prompt, tmp_path: Path) -> None:
    words = [f"{a} {b} {c}" for a in "0123456789" for b in "0123456789" for c in "0123456789"]
    assert len(written(tmp_path, prompt, words * 3)) == 1000
    with pytest.raises(DataError, match="1001 different labels in 3003 rows"):
        written(tmp_path, prompt, [*words, "the"] * 3)


def test_texts_that_the_tokenizer_cannot_spell_are_refused_or_remarked(
    prompt: Prompt, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As those of a KoBERT whose pieces of SentencePiece are named as WordPiece's."""
    labels = ["기쁨"] * 3 + ["슬픔"] * 3
    with pytest.raises(EnvironmentUnavailable, match="cannot spell 67% of the words of 6 test rows") as raised:
        written(tmp_path, prompt, labels, on="test", text="무엇을 찾으시나요 사과")
    assert "for Korean, for example, klue/bert-base" in raised.value.hint
    written(tmp_path, prompt, labels, on="test", text="사과 배 무엇")
    assert "cannot spell 33% of the words" in " ".join(capsys.readouterr().err.split())
    written(tmp_path, prompt, labels, on="test", text="사과 배 감")
    assert "cannot spell" not in capsys.readouterr().err


def test_a_tokenizer_that_closes_texts_otherwise_than_training_is_refused(base: Path, tmp_path: Path) -> None:
    """As the one that skt/kobert-base-v1 names, XLNet's: [CLS] behind the text."""
    backend = Tokenizer.from_file(str(base / "tokenizer.json"))
    ids = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = TemplateProcessing(single="$A [SEP] [CLS]", special_tokens=ids)
    named = json.loads((base / "tokenizer_config.json").read_text())
    odd = prompt_format.bind("source", backend, named["cls_token"], named["sep_token"], named["pad_token"])
    with pytest.raises(EnvironmentUnavailable, match="`pipeline` would ask otherwise than was trained"):
        written(tmp_path, odd, ["기쁨"] * 3 + ["슬픔"] * 3, on="test")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_encoder_reads_texts_as_pipeline_does_and_as_many_tokens_as_it_has_positions(
    kind: str, tmp_path: Path
) -> None:
    folder = tiny_encoder(tmp_path / "base", kind)
    prompt = prompt_format.from_transformers("source", tokenizer.load(folder))
    texts = (("사과 좋아요", ""), (" 배  별로 ", "감"), ("the?", ""))
    classes.refuse_unread(prompt, [Row(i, text, more, "") for i, (text, more) in enumerate(texts, 2)])
    assert len(prompt.encode("사과 😀", "", "기쁨").input_ids) > 3  # to an encoder, what it cannot spell is a word
    with pytest.raises(DataError, match="contains the special token"):
        prompt.encode(f"사과 {prompt.tokenizer_eos} 배", "", "기쁨")
    assert Base(folder, "org/base", None, None).max_positions == POSITIONS
    with pytest.raises(EnvironmentUnavailable, match=f"exceeds the {POSITIONS} positions"):
        engine.refuse_too_long(folder, POSITIONS + 1)
