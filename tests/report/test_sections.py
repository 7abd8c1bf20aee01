"""The sections around the answers: the sentence on top, gates in words, rows left out, recipe, how to use."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup

from appliance.recipe import differing, resolve
from appliance.report import gate_words, headline, page
from appliance.weights import proof as weights_proof
from tests.report.test_cautions_shown import CAUTION, NOW, evaluated

PASSED = {"name": "every_delta_is_in", "passed": True, "measured": 0, "bound": 0, "meaning": "tensors that differ"}
REFUSED = PASSED | {"passed": False, "measured": 3}
STOPS = {"name": "tuned_model_stops", "passed": True, "measured": 1.0, "bound": 0.8, "meaning": "share of answers"}
DONE = {"fingerprint": "f", "inputs": {}, "outputs": {}, "seconds": 12.0, "finished_at": "2026-01-01", "summary": "ok"}
MODEL = {"repo_id": "shop/bot", "commit_url": "https://hub.example/shop/bot/commit/a", "visibility": "private"}


def put(run_dir: Path, name: str, content: Any) -> None:
    (run_dir / name).parent.mkdir(exist_ok=True)
    (run_dir / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def html_of(run_dir: Path) -> str:
    return page.write_html(run_dir).read_text(encoding="utf-8")


def top(html: str) -> tuple[str, str]:
    """Style and text of the sentence on top."""
    (found,) = re.findall(r'<p class="headline (\w*)">(.*?)</p>', html, re.DOTALL)
    return found[0], re.sub(r"<[^>]+>", "", found[1])


def proven(run_dir: Path, **changes: Any) -> Path:
    run = evaluated(run_dir, **NOW, cautions=changes.pop("cautions", []))
    put(run, "merge/proof.json", {"passed": True, "cautions": [], "gates": [PASSED]} | changes)
    return run


def card(html: str, why: str) -> tuple[str, str]:
    """Class and text of the card that ends with these words."""
    (found,) = re.findall(rf'<b class="(\w*)">([^<]*)</b><span>{re.escape(why)}</span>', html)
    return found


HUB = {"uploaded": False, "message": "nothing was uploaded: publish.repo_id is not set", "gates": [STOPS]}


@pytest.mark.parametrize(
    ("hub", "files", "style", "says"),
    [
        (None, {}, "", "Not finished: still to do: check, prepare, train, evaluate, merge, publish."),
        (HUB, {"publish/stage.json": DONE}, "good", "Ready, not published: nothing was uploaded: publish.repo_id"),
        (
            HUB,
            {"publish/stage.json": DONE, "ended.json": {"kind": "refused", "message": "an export"}},
            "good",
            "Ready, not published: nothing was uploaded",
        ),
        (
            HUB | {"uploaded": True, "message": "uploaded", "repositories": {"model": MODEL, "adapter": MODEL}},
            {"publish/stage.json": DONE},
            "good",
            "Released: to shop/bot (private).",
        ),
        (
            HUB | {"uploaded": True, "repositories": {"model": MODEL}, "overridden": ["not_worse"],
                   "gates": [STOPS | {"name": "not_worse", "passed": False, "measured": "worse"}]},
            {"publish/stage.json": DONE},
            "bad",
            "Released: to shop/bot (private), despite its verdict, as its author decided (--even-if-worse).",
        ),
        (
            HUB | {"message": "refused: …", "gates": [STOPS | {"passed": False, "measured": 0.25}]},
            {},
            "bad",
            "Not released: 1 gate refused it: it stops by itself: 25 % of its answers, wanted at least 80 %.",
        ),
        (
            HUB | {"message": "refused: the release does not load with plain transformers", "gates": [STOPS]},
            {},
            "bad",
            "Not released: refused: the release does not load",
        ),
        (
            None,
            {"ended.json": {"kind": "failed", "stage": "train", "message": "loss is NaN at step 7"}},
            "bad",
            "Not released: the run failed in train: loss is NaN at step 7.",
        ),
        (
            None,
            {"ended.json": {"kind": "stopped", "stage": "train", "message": "interrupted"}},
            "doubtful",
            "Not released: the run was stopped in train: interrupted.",
        ),
    ],
    ids=["unfinished", "ready", "refused export", "released", "overridden", "gate", "no gate", "failed", "stopped"],
)  # fmt: skip
def test_the_sentence_on_top_says_whether_it_was_released_and_why(
    hub: Any, files: dict[str, Any], style: str, says: str, tmp_path: Path
) -> None:
    run = evaluated(tmp_path / "run", **NOW, cautions=[])
    for name, content in (files | ({"publish/hub.json": hub} if hub else {})).items():
        put(run, name, content)
    seen_style, text = top(html_of(run))
    assert text.startswith(says)
    assert seen_style == style


def test_the_verdict_has_its_interval_its_base_and_its_cautions_on_top(tmp_path: Path) -> None:
    html = html_of(
        evaluated(tmp_path, **NOW, base_asked="examples", base_examples=[4, 4], bases={}, cautions=[CAUTION])
    )
    sentence = (
        "On 4 test rows, better than the base with 4 examples in its prompt: F1 40.0% → 85.0%, "
        "a difference of +10.0 to +20.0 points (95 % interval)."
    )
    assert sentence in html
    assert html.index(sentence) < html.index("1 caution beside this verdict") < html.index('class="cards"')


def test_a_refused_release_shows_no_green_proven(tmp_path: Path) -> None:
    is_trained = "the merged model is the trained one"
    run = proven(tmp_path / "released")
    assert card(html_of(run), is_trained) == ("good", "proven")
    put(run, "publish/hub.json", HUB | {"gates": [STOPS | {"passed": False}]})
    html = html_of(run)
    assert card(html, f"{is_trained}, but it was not released") == ("", "proven")
    assert top(html)[0] == "bad"
    refused = html_of(proven(tmp_path / "refused", passed=False, gates=[REFUSED, PASSED]))
    assert card(refused, "the merged model is not the trained one, or that cannot be shown") == ("bad", "refused")
    assert top(refused) == (
        "bad",
        "Not released: the proof refused the merged model: “What was trained is in the merged model, up to rounding” "
        "does not hold: 3 tensors that differ.",
    )
    doubtful = proven(tmp_path / "doubtful")
    proof = json.loads((doubtful / "merge" / "proof.json").read_text(encoding="utf-8"))
    put(doubtful, "merge/proof.json", proof | {"cautions": [{"name": "few", "sentence": "few rows"}]})
    assert card(html_of(doubtful), is_trained) == ("doubtful", "proven, with 1 caution")


def test_gates_are_in_words_and_the_refused_ones_come_first(tmp_path: Path) -> None:
    run = proven(tmp_path, gates=[PASSED, REFUSED | {"name": "all_finite"}], passed=False)
    put(run, "evaluate/measures.json", {"stops": {"rows_that_fit": 41}})
    put(run, "publish/hub.json", HUB)
    html = html_of(run)
    assert "It stops by itself: 100 % of 41 answers, wanted at least 80 %" in html
    proof = html[html.index('<section id="proof"') : html.index('<section id="release"')]
    assert "1 of 2 gates of the proof did not pass." in proof
    assert proof.index("all_finite") < proof.index("every_delta_is_in")
    assert "The one gate of the release passed." in html


def test_every_gate_of_a_run_has_words() -> None:
    names = set(re.findall(r'"([a-z][a-z0-9]*(?:_[a-z0-9]+)+)",\n', Path(str(weights_proof.__file__)).read_text()))
    assert {"every_delta_is_in", "top1_agreement", "nearer_to_tuned"} <= names
    gate = {"passed": True, "measured": 0.5, "bound": 1.0, "meaning": "technical"}
    wordless = {name for name in names if "technical" in gate_words.of(gate | {"name": name})}
    assert wordless == set()
    assert gate_words.of(gate | {"name": "of_a_later_version"}) == "of_a_later_version: technical"


def test_rows_left_out_and_near_duplicates_are_listed_with_their_lines(tmp_path: Path) -> None:
    run = evaluated(tmp_path, **NOW)
    counts = dict.fromkeys(
        ("rows", "train", "val", "test", "repeated_questions", "shared_questions", "longest_row_tokens",
         "median_row_tokens", "max_seq_length"), 1)  # fmt: skip
    put(run, "prepare/summary.json", counts | {"format": "UTF-8", "rejected": 201})
    pair = {
        "side": "test",
        "row": 5,
        "train_row": 9,
        "similarity": 0.91,
        "same_answer": False,
        "question": "배?",
        "train_question": "배는<i>?",
    }
    put(run, "prepare/leaks.json", {"what": "questions", "count": 0, "test_rows": 0, "examples": []})
    put(run, "prepare/near_duplicates.json", {"summary": "", "with_twin": {"test": 0, "val": 0}, "pairs": [pair]})
    with (run / "prepare" / "rows.csv").open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([("row", "side", "reason"), ("2", "train", "")])
        csv.writer(handle).writerows((str(line), "rejected", "no <answer>") for line in range(3, 204))
    html = html_of(run)
    assert "201 rows left out, and why" in html
    assert html.count("<bdi>no &lt;answer&gt;</bdi>") == 200
    assert "1 more in prepare/rows.csv." in html
    assert "line 5 (test), line 9 (train)" in html
    assert "배는&lt;i&gt;?" in html


def test_the_recipe_begins_with_what_differs_from_the_defaults(tmp_path: Path) -> None:
    recipe = resolve.load("chatbot-cpu", overrides=["name=shop", "train.epochs=7"], environ={})
    run = evaluated(tmp_path / "run", **NOW)
    (run / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    found = {one.key: one for one in differing.of(recipe)}
    assert found["train.epochs"] == differing.Value("train.epochs", 7.0, 3, "--set")
    assert "data.normalize" not in found
    assert found == {one.key: one for one in differing.among(resolve.written(run / "recipe.yaml"))}
    html = html_of(run)
    table, whole = html[html.index('<section id="recipe"') :].split("The whole recipe")
    assert "train.epochs" in table
    assert "data.normalize" not in table
    assert "normalize" in whole


def test_how_to_use_it_is_shown_once_the_model_is_proven(tmp_path: Path) -> None:
    assert "How to use it" not in html_of(evaluated(tmp_path / "unproven", **NOW))
    run = proven(tmp_path / "my run")
    assert "How to use it" not in html_of(run)  # its weights are elsewhere
    (run / "merge" / "model").mkdir()
    (use,) = re.findall(r'<section id="use".*?</section>', html_of(run), re.DOTALL)
    assert f"appliance chat &#39;{run}&#39;" in use
    assert f"AutoTokenizer.from_pretrained(&#34;{run}/merge/model&#34;)" in use
    assert f"appliance serve &#39;{run}&#39;" in use
    assert len(re.findall('<pre class="copy"', use)) == 4
    put(run, "publish/hub.json", HUB | {"uploaded": True, "repositories": {"model": MODEL}})
    assert "vllm serve shop/bot" in html_of(run)


def test_stages_have_their_seconds_and_their_memory(tmp_path: Path) -> None:
    run = evaluated(tmp_path, **NOW)
    put(run, "check/stage.json", DONE)
    put(run, "train/stage.json", DONE | {"peak_memory": {"host": 3 << 30, "gpu": 5 << 30}})
    html = html_of(run)
    (stages,) = re.findall(r'<section id="stages".*?</section>', html, re.DOTALL)
    assert "3.0 GiB, GPU 5.0 GiB" in stages
    assert stages.count("12 s") == 2


def test_headline_knows_no_run_that_is_not_finished_as_good() -> None:
    shown: dict[str, Any] = {"hub": None, "proof": None, "ended": {}, "stages": {}, "cautions": [], "metrics": None}
    assert headline.of(shown).style == ""
    assert headline.of_proof(shown, headline.of(shown)) is None
    assert headline.of_verdict(shown, {}) == ""


def test_exported_files_are_listed_with_what_they_cost(tmp_path: Path) -> None:
    run = evaluated(tmp_path, **NOW)
    assert "GGUF files" not in html_of(run)
    scores = {"exact_match": 0.25, "facts_right": None, "f1": 0.5, "kl": 0.0123}
    caution = {"name": "gguf_below_the_verdict", "sentence": "q4_k_m answers worse than what was proven"}
    plain = {"file": "shop-f16.gguf", "size": 3 << 20, "gates": [PASSED | {"name": "gguf_is_complete"}]}
    asked = {"file": "shop-q4_k_m.gguf", "size": 1 << 20, "gates": [], "scores": scores, "cautions": [caution]}
    put(run, "export/export.json", {"files": {"f16": plain, "q4_k_m": asked}})
    (section,) = re.findall(r'<section id="export".*?</section>', html_of(run), re.DOTALL)
    text = re.sub(r"<[^>]+>", " ", section)
    assert "The file has every tensor of the merged model, and no other" in text
    assert re.search(r"shop-q4_k_m\.gguf\s+1\.0 MiB\s+25\.0%\s+–\s+50\.0%\s+0\.012 nats", text)
    assert re.search(r"shop-f16\.gguf\s+3\.0 MiB\s+–\s+–\s+–\s+–", text)
    assert "q4_k_m answers worse than what was proven" in text


@pytest.mark.parametrize("name", page._SHOWS)
def test_a_section_is_left_out_unrendered_only_if_it_would_be_empty(name: str) -> None:
    assert not page.rendered_by(f"{name}.html.j2", {}).strip()
    assert page._SHOWS.keys() <= page.TITLES.keys()


def test_each_fact_that_a_section_can_show_is_enough_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "rendered_by", lambda template, _: Markup(template))
    for name, needed in page._SHOWS.items():
        assert page.sections({}, {name: ""}) == []
        for fact in needed:
            (section,) = page.sections({fact: {"any": 1}}, {name: ""})
            assert section.id == name
