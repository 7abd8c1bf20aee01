"""Readers on tokenizers of bytes (RoBERTa) and word pieces (ELECTRA), and questions with several right answers."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from appliance.evaluation import span_scores
from appliance.process import files
from appliance.release import reload_spans
from appliance.weights import proof
from tests.conftest import read_csv
from tests.helpers import plain_process, warm
from tests.helpers.classifiers import tiny_encoder
from tests.whole_runs.test_extract import DAYS, FILLER, NAMES, begin, finish

pytestmark = pytest.mark.slow

TEXTS = 32
WORDS = (" ".join((*NAMES, *DAYS, *FILLER)), "누가 갔나? 언제 갔나? 0 1 2 3 4 5 6 7 8 9")


def write_rows(path: Path) -> Path:
    """Every text has one question with two right answers, as in SQuAD's dev set, and one whose answer stands in it
    twice; places are named by none of the rows.
    """
    with path.open("w", newline="", encoding="utf-8") as stream:
        add = csv.writer(stream).writerow
        add(("question", "context", "answer"))
        for i in range(TEXTS):
            name, day = NAMES[i % 3], DAYS[i // 3 % 3]
            filler = [FILLER[(i + j) % len(FILLER)] for j in range(i % 4 * 8)]
            context = " ".join((name, *filler, str(i), day, "최고", *filler, name))
            add(("언제 갔나?", context, day))
            add(("언제 갔나?", context, f"{day} 최고"))
            add(("누가 갔나?", context, name))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind -> a finished run."""
    root, found = tmp_path_factory.mktemp("readers"), {}
    settings = {"model.max_seq_length": "48", "train.max_steps": "24", "train.eval_every": "12", "rehearse": "never"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "subprocess", warm)
        for kind in ("roberta", "electra"):
            tiny_encoder(root / kind / "base", kind, WORDS)
            write_rows(root / kind / "train.csv")
            found[kind] = finish(root / kind, begin(root / kind, **settings))
    return found


@pytest.mark.parametrize("kind", ["roberta", "electra"])
def test_a_release_of_either_shape_gives_the_evaluated_answers(kind: str, runs: dict[str, Path]) -> None:
    run = runs[kind]
    release, rows = run / "publish" / "release" / "model", read_csv(run / "evaluate" / "predictions.csv")
    card = (release / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0].replace("FOLDER_OR_REPO", str(release))
    code += "import json, sys\nprint(json.dumps([answers(q, c) for q, c in json.load(sys.stdin)]))\n"
    prepared = {row["row"]: row for row in read_csv(run / "prepare" / "test.csv")}
    asked = [(prepared[row["row"]]["instruction"], prepared[row["row"]]["input"]) for row in rows]
    given = plain_process.printed(code, asked)
    gate = reload_spans.judge([row["row"] for row in rows], [row["tuned"] for row in rows], given)
    assert gate.passed, gate.meaning
    assert len({row["tuned"] for row in rows}) > 1
    assert all(best[0][0] in context for best, (_, context) in zip(given, asked, strict=True))
    assert files.read_json(run / "merge" / "proof.json")["passed"]
    summary = files.read_json(run / "prepare" / "summary.json")
    assert all(summary["windows"][side] > summary[side] for side in ("train", "test"))


@pytest.mark.parametrize("kind", ["roberta", "electra"])
def test_the_card_shows_question_and_text_as_the_model_reads_them(kind: str, runs: dict[str, Path]) -> None:
    release = runs[kind] / "publish" / "release" / "model"
    card = (release / "README.md").read_text(encoding="utf-8")
    shown = card.split("A question and its text become\n\n```text\n")[1].split("\n```")[0]
    tokenizer = AutoTokenizer.from_pretrained(release)
    assert tokenizer(shown, add_special_tokens=False)["input_ids"] == tokenizer("QUESTION", "TEXT")["input_ids"]
    begin, between, end = shown.replace("TEXT", "QUESTION").split("QUESTION")
    assert (begin, end) == (tokenizer.cls_token, tokenizer.sep_token)
    assert between == end * (2 if kind == "roberta" else 1)


def test_of_several_right_answers_the_best_counts(runs: dict[str, Path]) -> None:
    run = runs["electra"]
    summary, figures = (files.read_json(run / name) for name in ("prepare/summary.json", "evaluate/metrics.json"))
    rows = read_csv(run / "evaluate" / "predictions.csv")
    prepared = read_csv(run / "prepare" / "test.csv")
    right = defaultdict[tuple[str, str], list[str]](list)
    for row in prepared:
        right[row["instruction"], row["input"]].append(row["output"])
    assert len(rows) == figures["rows"] == len(right) < len(prepared)
    assert figures["spans"]["several_answers"] == len(rows) / 2
    assert summary["train"] + summary["val"] + summary["test"] == 3 * TEXTS
    assert summary["rejected"] == 0
    assert summary["warnings"] == {"several places": TEXTS}  # and no contradictions
    asked = {row["row"]: right[row["instruction"], row["input"]] for row in prepared}
    scores = [
        max(span_scores.best("f1", [one], row["tuned"], "character") for one in asked[row["row"]]) for row in rows
    ]
    assert figures["tuned"]["f1"] == pytest.approx(sum(scores) / len(scores))
    assert {row["wanted"] for row in rows} <= {text for texts in right.values() for text in texts}
