"""What evaluate does beside the score: the user's questions, drawn answers, and another model in the same table."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import DataError
from appliance.evaluation import extra_questions, other_model, predictions
from appliance.evaluation import scores as evaluation_scores
from appliance.evaluation.generate import Answer
from appliance.pipeline.job import Job
from appliance.process import files
from appliance.recipe.fields import SamplingSection
from appliance.recipe.resolve import load
from appliance.report import page as report_page
from appliance.rows.csv_file import Row
from appliance.rundir import results
from appliance.rundir.directory import RunDir
from tests.conftest import read_csv, write_qa
from tests.evaluation.test_evaluate import prepare_dir as _prepare_dir
from tests.evaluation.test_evaluate import run
from tests.helpers.models import tiny_adapter

prepare_dir = _prepare_dir  # the fixture


@pytest.fixture
def adapter_dir(base_dir: Path, tmp_path: Path, prepare_dir: Path) -> Path:
    (prepare_dir / "train.csv").write_bytes((prepare_dir / "test.csv").read_bytes())
    return tiny_adapter(tmp_path / "adapter", base_dir, strength=0.5)


@pytest.mark.slow
def test_extra_questions_are_asked_of_both_models_and_scored_nowhere(
    base_dir: Path, adapter_dir: Path, prepare_dir: Path, tmp_path: Path
) -> None:
    plain = run(base_dir, adapter_dir, prepare_dir, tmp_path / "plain")
    assert not (tmp_path / "plain" / results.EXTRA_ANSWERS).exists()
    asked = ["짧게?", '아주 긴 질문이라서 다른 것들은 왼쪽을 채워야 하는 질문인가요? | 네, "그렇습니다"']
    seen = run(base_dir, adapter_dir, prepare_dir, tmp_path / "e", extra_prompts=asked, train_questions=4)
    assert seen == plain
    rows = read_csv(tmp_path / "e" / results.EXTRA_ANSWERS)
    assert [row["question"] for row in rows[:2]] == asked
    assert [row["from"] for row in rows] == ["extra"] * 2 + ["train"] * 4
    assert [row["row"] for row in rows[2:]] == sorted((row["row"] for row in rows[2:]), key=int)
    # where both asked the same, both answers are those of the scored rows: greedy, whatever shares the batch
    scored = {row["row"]: row for row in read_csv(tmp_path / "e" / "predictions.csv")}
    for row in rows[2:]:
        assert (row["question"], row["wanted"]) == (scored[row["row"]]["question"], scored[row["row"]]["wanted"])
        assert (row["base"], row["tuned"]) == (scored[row["row"]]["base"], scored[row["row"]]["tuned"])
    assert any(row["base"] != row["tuned"] for row in rows)


@pytest.mark.slow
def test_drawn_answers_follow_the_seed_and_leave_the_score_alone(
    base_dir: Path, adapter_dir: Path, prepare_dir: Path, tmp_path: Path
) -> None:
    options = {"extra_prompts": ["하나?", "둘?", "셋?"], "max_new_tokens": 12}
    sampling = SamplingSection(temperature=1.5, top_p=0.95)

    def answers(name: str, **more: object) -> tuple[list[dict[str, str]], bytes]:
        run(base_dir, adapter_dir, prepare_dir, tmp_path / name, **options, **more)
        return read_csv(tmp_path / name / results.EXTRA_ANSWERS), (tmp_path / name / "predictions.csv").read_bytes()

    greedy, first, again = answers("greedy"), answers("a", sampling=sampling), answers("b", sampling=sampling)
    assert first == again != greedy
    assert first[1] == greedy[1]  # test rows are answered greedily all the same
    scored = answers("c", sampling=SamplingSection(temperature=1.5, top_p=0.95, scored=True))
    assert scored[1] != greedy[1]
    assert scored[0] == first[0]


def test_questions_come_from_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "q.txt"
    path.write_bytes("\ufeff하나?\r\n\r\n  둘? \n".encode())
    found = extra_questions.collect(str(path), tmp_path / "none.csv", 0, 0)
    assert [(one.origin, one.text) for one in found] == [("extra", "하나?"), ("extra", "둘?")]
    path.write_bytes("가격은 얼마인가요?\n언제 여나요?\n".encode("cp949"))
    found = extra_questions.collect(str(path), tmp_path / "none.csv", 0, 0)
    assert [one.text for one in found] == ["가격은 얼마인가요?", "언제 여나요?"]


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (b"\n \n", "contains no questions", "one question per line"),
        (b"", "is empty", "evaluate.extra_prompts"),
        (
            b"PK\x03\x04 xl/",
            "is an Excel file .*expected text with one question per line",
            "evaluate.extra_prompts=FILE",
        ),
        (
            "가격은 얼마인가요?\n".encode() * 9 + b"a\xb0\n",
            "line 10: byte 0xB0 is not valid UTF-8",
            "save the file as UTF-8",
        ),
        (b"caf\xe9?\n", "line 1: byte 0xE9 .* could not be determined", "save the file as UTF-8"),
        (None, "evaluate.extra_prompts: there is no file", "evaluate.extra_prompts="),
    ],
)
def test_questions_that_cannot_be_read_are_refused_beforehand_as_later(
    content: bytes | None, message: str, hint: str, tmp_path: Path
) -> None:
    path = tmp_path / "q.txt"
    if content is not None:
        path.write_bytes(content)
    for refuse in (
        lambda: extra_questions.refuse_unreadable(str(path)),
        lambda: extra_questions.collect(str(path), tmp_path / "none.csv", 0, 0),
    ):
        with pytest.raises(DataError, match=message) as caught:
            refuse()
        assert hint in caught.value.hint
        assert "data." not in caught.value.hint  # no advice about another file


def test_questions_that_can_be_read_are_refused_by_nothing(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("하나?\n", encoding="utf-8")
    for given in ([], ["하나?"], str(tmp_path / "q.txt")):
        extra_questions.refuse_unreadable(given)
    other_model.refuse_unreadable(write_qa(tmp_path / "a.csv", [("1", "a"), ("2", "")], ("row", "answer")))


def test_a_changed_file_is_another_input_and_a_lost_one_is_not(tmp_path: Path) -> None:
    asked = tmp_path / "q.txt"
    asked.write_text("하나?\n", encoding="utf-8")
    recipe = load("demo", overrides=[f"evaluate.extra_prompts={asked}"], environ={})
    run_dir = RunDir(tmp_path / "run")
    run_dir.create()
    key = "evaluate.extra_prompts (sha256)"
    job = Job(recipe, run_dir, tmp_path)
    before = job._sha256_before("evaluate", key, asked)
    run_dir.begin("evaluate", {})
    run_dir.finish("evaluate", {key: before}, "done")
    asked.write_text("둘?\n", encoding="utf-8")
    assert job._sha256_before("evaluate", key, asked) not in (before, None)
    asked.unlink()
    assert job._sha256_before("evaluate", key, asked) == before


ROWS = [Row(2, "대한민국의 수도는?", "", "서울"), Row(3, "강은?", "서울에 있다", "한강"), Row(5, "산은?", "", "남산")]


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        (("row", "answer"), [("5", "남산"), ("2", "서울특별시"), ("3", "한강")]),
        (
            ("Question", " Answer "),
            [("산은?", "남산"), ("대한민국의  수도는?", "서울특별시"), ("강은?\n\n서울에 있다", "한강")],
        ),
        (("질문", "답"), [("산은?", "남산"), ("대한민국의 수도는?", "서울특별시"), ("강은?\n\n서울에 있다", "한강")]),
        (("answer", "note", "row"), [("남산", "x", "5"), ("서울특별시", "", "2"), ("한강", "", "3"), ("", "", "99")]),
    ],
)
def test_other_answers_find_their_rows(header: tuple[str, ...], lines: list[tuple[str, ...]], tmp_path: Path) -> None:
    path = write_qa(tmp_path / "hosted.csv", lines, header)
    assert other_model.read(path, ROWS) == ["서울특별시", "한강", "남산"]
    path.write_bytes(path.read_text(encoding="utf-8").encode("cp949"))
    assert other_model.read(path, ROWS) == ["서울특별시", "한강", "남산"]


@pytest.mark.parametrize("delimiter", ";\t|")
def test_other_answers_may_have_another_delimiter_and_blank_lines(delimiter: str, tmp_path: Path) -> None:
    path = tmp_path / "hosted.csv"
    lines = ["Row,답변", "5,남산", "", '2,"서울, 아마"', "3,한강"]
    path.write_text("\n".join(line.replace(",", delimiter, 1) for line in lines), encoding="utf-8")
    assert other_model.read(path, ROWS) == ["서울, 아마", "한강", "남산"]


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        (("row", "answer"), [("2", "a"), ("5", "b")], "answers 2 of 3 rows; missing: row '3'"),
        (("row", "answer"), [("2", "a"), ("2", "b")], "two answers to row '2'"),
        (("id", "answer"), [("2", "a")], "has the columns 'id', 'answer'"),
        (("row", "text"), [("2", "a")], "has the columns 'row', 'text'"),
        (("row", "instruction", "output"), [("2", "a", "b")], "has the columns 'row', 'instruction', 'output'"),
        (("row", "답", "정답"), [("2", "a", "b")], "has the columns 'row', '답', '정답'"),
        (("row", "answer"), [("2", ""), ("", "a")], "has a header but no answers"),
    ],
)
def test_what_cannot_be_another_models_answers(
    header: tuple[str, ...], lines: list[tuple[str, ...]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        other_model.read(write_qa(tmp_path / "x.csv", lines, header), ROWS)


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (None, "there is no file", "--set evaluate.other_answers=FILE"),
        (b"", "is empty", "evaluate.other_answers"),
        (b"row,answer\n", "has a header but no answers", "the columns row"),
        (b"id,text\n1,a\n", "has the columns 'id', 'text'", "the columns row"),
        (b'[{"row": 1}]', "is JSON, expected a CSV", "--set evaluate.other_answers=FILE"),
        (b'row,answer\n1,"a\n', "line 2: the record that begins here", "quote"),
        (
            "row,answer\n1,남산입니다\n".encode() + b"2,a\xb0\n",
            "line 3: byte 0xB0 is not valid UTF-8",
            "save the file as UTF-8",
        ),
        (b"row,answer\n1,caf\xe9\n", "line 2: byte 0xE9 .* could not be determined", "save the file as UTF-8"),
    ],
)
def test_answers_that_cannot_be_read_are_refused_beforehand_as_later(
    content: bytes | None, message: str, hint: str, tmp_path: Path
) -> None:
    path = tmp_path / "hosted.csv"
    if content is not None:
        path.write_bytes(content)
    for refuse in (lambda: other_model.refuse_unreadable(path), lambda: other_model.read(path, ROWS)):
        with pytest.raises(DataError, match=message) as caught:
            refuse()
        assert hint in caught.value.hint
        assert "data." not in caught.value.hint  # no advice about another file


def test_a_folder_is_refused_by_the_name_of_its_field(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder") as caught:
        other_model.refuse_unreadable(tmp_path)
    assert caught.value.hint == "name the file: --set evaluate.other_answers=FOLDER/FILE.csv"
    with pytest.raises(DataError, match="is a folder, not text") as caught:
        extra_questions.refuse_unreadable(str(tmp_path))
    assert caught.value.hint == "name the file: --set evaluate.extra_prompts=FOLDER/FILE"


def test_what_is_refused_beforehand_loads_nothing_heavy() -> None:
    heavy = ("numpy", "pandas", "torch", "transformers", "rouge_score", "charset_normalizer")
    code = (
        "import sys; from appliance.evaluation import extra_questions as extra_answers; "
        f"from appliance.evaluation import other_model; print([n for n in sys.modules if n in {heavy}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_another_model_stands_in_the_same_table(
    base_dir: Path, adapter_dir: Path, prepare_dir: Path, tmp_path: Path
) -> None:
    rows = read_csv(prepare_dir / "test.csv")
    path = write_qa(tmp_path / "hosted.csv", [(row["row"], row["output"]) for row in rows], ("row", "answer"))
    stage_dir = tmp_path / "run" / "evaluate"
    stage_dir.parent.mkdir()
    seen = run(base_dir, adapter_dir, prepare_dir, stage_dir, other_answers=str(path))
    figures = files.read_json(stage_dir / "metrics.json")
    other = figures.pop("other")
    assert (other["name"], other["exact_match"], other["f1"], other["verdict"]) == ("hosted", 1.0, 1.0, "not proven")
    # the tuned model is worse than right answers in every row, but the rows have five questions
    assert (other["losses"], other["groups"]) == (10, 5)
    assert figures["tuned"]["f1"] == seen.tuned.f1
    assert all(row["other"] == row["wanted"] for row in read_csv(stage_dir / "predictions.csv"))
    (stage_dir.parent / "recipe.yaml").write_text("name: x\n", encoding="utf-8")
    html = report_page.write_html(stage_dir.parent).read_text(encoding="utf-8")
    assert '<th scope="col" class="number way"><bdi>hosted</bdi></th>' in html
    assert html.count('<td class="number" data-label="hosted">100.0%</td>') >= 2
    why = "the test rows hold only 5 different questions (or groups); a verdict needs at least 10"
    assert f"held-out test rows: {why}</span>" in html
    assert f"points (not proven: {why})" in html
    assert "95 % interval over 5 groups of equal questions" in html


# KorQuAD 1.0, by hand: wanted answer, answer given, exact match; characters shared, given, wanted.
FIXTURE = [
    ("1972년", "1972년.", 1, 5, 5, 5),
    ("워싱턴 대학교", "워싱턴대학교", 0, 6, 6, 6),  # a space counts for exact match, not for F1
    ("《로스 데이비스》", "'로스 데이비스'", 1, 6, 6, 6),
    ("다니엘 J. 에반스", "다니엘 에반스", 0, 6, 6, 7),
    ("앨버트", "로젤리니", 0, 0, 4, 3),
    ("5월 5일", "5월 5일 어린이날", 0, 4, 8, 4),
]


def test_korquads_official_scores_on_a_fixture() -> None:
    """The means over the file, as evaluate-v1.0.py computes them: 2PR / (P + R) from shared characters."""
    wanted, got = [row[0] for row in FIXTURE], [row[1] for row in FIXTURE]
    assert evaluation_scores.f1_unit(wanted) == "character"
    scores = evaluation_scores.score(wanted, got, unit="character", loss=0.0, stopped=[True] * len(got))
    assert scores.exact_match == pytest.approx(2 / 6)
    by_hand = []
    for _, _, _, shared, given, needed in FIXTURE:
        precision, recall = shared / given, shared / needed
        by_hand.append(2 * precision * recall / (precision + recall) if shared else 0.0)
    assert by_hand == pytest.approx([1, 1, 1, 12 / 13, 0, 2 / 3])
    assert scores.f1 == pytest.approx(sum(by_hand) / 6)
    assert evaluation_scores.per_row("exact_match", wanted, got, "character") == [row[2] for row in FIXTURE]


def test_cells_with_line_breaks_stay_one_line_of_the_table(tmp_path: Path) -> None:
    one = extra_questions.Question("extra", "", 'a\r"b"\n', "c", "")
    extra_questions.write(tmp_path / "x.csv", [one], ["가\r나"], ["다, 라"])
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as handle:
        (row,) = csv.DictReader(handle)
    assert (row["question"], row["base"], row["tuned"]) == ('a\r"b"\n\n\nc', "가\r나", "다, 라")


def test_predictions_say_which_tuned_answers_ended_by_themselves(tmp_path: Path) -> None:
    rows = [Row(2, "q", "", "a"), Row(5, "r", "", "b")]
    base = [Answer((), "a", stopped=True), Answer((), "b", stopped=True)]
    tuned = [Answer((), "a", stopped=True), Answer((), "b b b", stopped=False)]
    scored = {"base": [1.0, 1.0], "tuned": [1.0, 0.5]}
    others, path = ["x", "y"], tmp_path / "predictions.csv"
    more = predictions.columns(others, {"chat": base})
    predictions.write(path, rows, {"base": base, "tuned": tuned}, scored, "word", more)
    written = read_csv(path)
    assert list(written[0]) == [*results.PREDICTION_COLUMNS, "other", "base_chat", "stopped"]
    assert [(row["row"], row["stopped"], row["other"]) for row in written] == [("2", "yes", "x"), ("5", "no", "y")]
