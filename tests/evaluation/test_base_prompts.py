"""How the base is asked: three ways, each with its own ends, and a verdict that names the best of them."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from appliance.engines.transformers import TransformersEngine
from appliance.errors import RecipeError
from appliance.evaluation import base_prompts, compare_runs, generate
from appliance.evaluation.base_prompts import CHAT, EXAMPLES, PROMPT, Way
from appliance.evaluation.generate import Answer
from appliance.machine import device
from appliance.pipeline import before_evaluate, test_rows
from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.recipe.fields import EvaluateSection, ModelSection
from appliance.report import page as report_page
from appliance.rows import csv_file
from appliance.rows.csv_file import Row
from appliance.tasks import causal
from tests.conftest import read_csv
from tests.evaluation.test_evaluate import prepare_dir as _prepare_dir
from tests.evaluation.test_evaluate import run
from tests.helpers.models import tiny_adapter, tiny_base, tiny_tokenizer
from tests.helpers.tokenizer_kinds import CHATS, MISTRAL

prepare_dir = _prepare_dir  # the fixture
ALL = (PROMPT, CHAT, EXAMPLES)


@pytest.fixture(scope="module")
def chat_base(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> Path:
    """The tiny base with a chat template like Mistral's."""
    folder = shutil.copytree(base_dir, tmp_path_factory.mktemp("models") / "tiny-chat")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = MISTRAL
    tokenizer.save_pretrained(folder)
    return folder


def rows_of(prepare_dir: Path, side: str) -> list[Row]:
    return csv_file.read_canonical(prepare_dir / f"{side}.csv")


def ours_of(base_dir: Path, rows: list[Row], name: str = "alpaca", room: int = 5) -> Way:
    prompt = prompt_format.from_folder(name, base_dir)
    ids = [prompt.prompt_ids(prompt_format.user_message(row.instruction, row.input)) for row in rows]
    return Way(PROMPT, prompt, ids, room)


def ways(
    base_dir: Path,
    prepare_dir: Path,
    *chosen: str,
    name: str = "alpaca",
    positions: int = 5000,
    longest_row: int = 1000,
    seed: int = 0,
) -> base_prompts.Ways:
    rows = rows_of(prepare_dir, "test")
    return base_prompts.ways(
        chosen or ALL,
        ours_of(base_dir, rows, name),
        rows,
        base_dir=base_dir,
        positions=positions,
        train_csv=prepare_dir / "train.csv",
        longest_row=longest_row,
        seed=seed,
    )


def texts(way: Way) -> list[str]:
    return [way.prompt.backend.decode(list(ids), skip_special_tokens=False) for ids in way.prompts]


# --- the verdict


def a_base_that_is_right(way_of_base: str) -> Any:
    """In place of generate.answer: the base knows the answers in one way only, the tuned model none."""

    def answer(_model: Any, prompt: Any, prompts: Any, *, halts: bool, **_: Any) -> list[Answer]:
        given = []
        for ids in prompts:
            text = prompt.backend.decode(list(ids), skip_special_tokens=False)
            way = CHAT if "[INST]" in text else EXAMPLES if text.count("### Response:") > 1 else PROMPT
            *examples, question = re.findall(r"(질문|물음) (\d+)[?!]", text)
            assert {word for word, _ in examples} == ({"물음"} if way == EXAMPLES else set())  # of train.csv alone
            number = int(question[1])
            right = halts and way == way_of_base
            given.append(Answer((1, 2), f"답 {number}" if right else "모름", stopped=right))
        return given

    return answer


@pytest.mark.parametrize(
    ("way", "named"),
    [
        (PROMPT, "with the same prompt"),
        (CHAT, "with its own chat template"),
        (EXAMPLES, "with 4 examples in its prompt"),
    ],
)
def test_the_verdict_is_about_the_best_way_and_names_it(
    way: str, named: str, chat_base: Path, prepare_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "answer", a_base_that_is_right(way))
    monkeypatch.setattr(test_rows, "room", lambda *_: 5)
    one_each = "".join(f"{row.line},g{row.line}\n" for row in rows_of(prepare_dir, "test"))
    (prepare_dir / "test_groups.csv").write_text(f"row,group\n{one_each}", encoding="utf-8")
    stage_dir = tmp_path / "run" / "evaluate"
    stage_dir.parent.mkdir()
    adapter_dir = tiny_adapter(tmp_path / "adapter", chat_base, strength=0.5)
    seen = run(chat_base, adapter_dir, prepare_dir, stage_dir, primary="exact_match")
    assert (seen.verdict, seen.base_asked, seen.base_examples) == ("worse", way, (4, 4))
    assert (seen.base.exact_match, seen.tuned.exact_match, seen.base.stop_rate) == (1.0, 0.0, 1.0)
    assert f": worse than the base {named}, with 1 caution; " in seen.summary()

    figures = files.read_json(stage_dir / "metrics.json")
    assert {name: scores["exact_match"] for name, scores in figures["bases"].items()} == {
        name: float(name == way) for name in ALL
    }
    losses = {name: scores["loss"] for name, scores in figures["bases"].items()}
    assert losses == {PROMPT: figures["base"]["loss"], CHAT: None, EXAMPLES: None}
    predictions = read_csv(stage_dir / "predictions.csv")
    others = [name for name in ALL if name != way]
    shown = ["row", "question", "wanted", "base", "tuned", "verdict", *(f"base_{name}" for name in others)]
    assert list(predictions[0]) == [*shown, "stopped"]
    assert {row["stopped"] for row in predictions} == {"no"}  # the base stopped
    assert all(row["base"] == row["wanted"] for row in predictions)
    assert {row[f"base_{name}"] for row in predictions for name in others} == {"모름"}
    # the gates go by our prompt, whichever way was the best
    assert files.read_json(stage_dir / "measures.json")["stops"]["rows_that_fit"] == 0

    (stage_dir.parent / "recipe.yaml").write_text("name: x\n", encoding="utf-8")
    html = report_page.write_html(stage_dir.parent).read_text(encoding="utf-8")
    assert f"worse than the base {named}, on 10 held-out test rows" in html
    assert html.count('<th scope="col" class="number way">base with ') == 3
    shutil.copytree(prepare_dir, stage_dir.parent / "prepare")
    files.write_json(stage_dir.parent / "run.json", {"base": {"public_id": "maker/tiny"}})
    assert [line.name for line in compare_runs.across([stage_dir.parent])] == ["run", f"base model maker/tiny {named}"]


def test_of_equal_ways_the_simplest_counts() -> None:
    right, wrong = [Answer((1,), "답", True)], [Answer((1,), "모름", True)]
    assert base_prompts.best({EXAMPLES: right, CHAT: right, PROMPT: right}, ["답"], "f1") == PROMPT
    assert base_prompts.best({EXAMPLES: right, CHAT: right, PROMPT: wrong}, ["답"], "f1") == CHAT


@pytest.mark.slow
def test_a_base_that_is_not_asked_in_our_prompt_has_no_stop_rate_for_the_gates(
    base_dir: Path, prepare_dir: Path, tmp_path: Path
) -> None:
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir, strength=0.5)
    asked = {"base_prompts": [EXAMPLES], "max_new_tokens": 8}
    seen = run(base_dir, adapter_dir, prepare_dir, tmp_path / "evaluate", **asked)
    assert (seen.base_asked, list(seen.bases), seen.base_examples) == (EXAMPLES, [EXAMPLES], (4, 4))
    stops = files.read_json(tmp_path / "evaluate" / "measures.json")["stops"]
    assert (stops["rows_that_fit"], stops["base"]) == (10, None)
    assert stops["tuned"] is not None
    again = run(base_dir, adapter_dir, prepare_dir, tmp_path / "again", **asked)
    assert again == seen
    written = [(tmp_path / name / "predictions.csv").read_bytes() for name in ("evaluate", "again")]
    assert written[0] == written[1]


# --- the ways


def test_a_base_without_a_chat_template_is_asked_in_the_other_ways(base_dir: Path, prepare_dir: Path) -> None:
    made = ways(base_dir, prepare_dir)
    assert [way.name for way in made.asked] == [PROMPT, EXAMPLES]
    assert made.left_out == {CHAT: "it has none"}
    with pytest.raises(
        RecipeError, match=r"evaluate.base_prompts: the base cannot be asked with its own chat template"
    ):
        ways(base_dir, prepare_dir, CHAT)


@pytest.mark.parametrize("kind", ["chatml", "llama 3", "mistral"])
def test_a_chat_base_is_asked_in_its_own_words(kind: str, prepare_dir: Path, tmp_path: Path) -> None:
    make, end = CHATS[kind]
    make().save_pretrained(tmp_path / "base")
    (way,) = ways(tmp_path / "base", prepare_dir, CHAT).asked
    row = rows_of(prepare_dir, "test")[0]
    wanted = make().apply_chat_template(
        prompt_format.user_message(row.instruction, row.input), add_generation_prompt=True, return_dict=False
    )
    assert [len(way.prompts), list(way.prompts[0])[-5:]] == [10, list(wanted)[-5:]]
    assert row.instruction in texts(way)[0]
    assert "### Response" not in texts(way)[0]
    assert (way.prompt.eos_token, way.stop, way.examples) == (end, (), None)


@pytest.mark.slow
def test_the_templates_end_of_turn_ends_an_answer_though_the_model_does_not_declare_it(tmp_path: Path) -> None:
    base_dir = tiny_base(tmp_path / "base", words=CHATS["chatml"][0]())
    rows = [Row(2, "가격은?", "", "만 원")]
    way = base_prompts._in_chat_template(ours_of(base_dir, rows), rows, base_dir, 512, is_ours_too=True)
    assert isinstance(way, Way)
    section = ModelSection(id="x", load_in_4bit=False)
    model, _ = TransformersEngine(device.device(), causal.TASK).load_for_inference(base_dir, section, None)
    bias = torch.zeros(model.config.vocab_size)
    bias[way.prompt.eos_token_id] = 100.0
    model.get_output_embeddings().register_forward_hook(lambda _m, _a, logits: logits + bias)
    asked = [(way.prompt, way.prompts), (ours_of(base_dir, rows).prompt, way.prompts)]
    turned, plain = (
        generate.answer(model, prompt, ids, max_new_tokens=4, task=causal.TASK)[0] for prompt, ids in asked
    )
    assert turned == Answer((way.prompt.eos_token_id,), "", True)
    assert not plain.stopped


def test_where_the_prompt_is_the_chat_template_it_is_not_asked_twice(chat_base: Path, prepare_dir: Path) -> None:
    made = ways(chat_base, prepare_dir, name="chat")
    assert [way.name for way in made.asked] == [PROMPT, EXAMPLES]
    assert made.left_out == {CHAT: "the recipe's prompt is that template"}
    (only,) = ways(chat_base, prepare_dir, CHAT, name="chat").asked
    assert (only.name, only.prompts) == (CHAT, made.asked[0].prompts)


def test_a_template_that_cannot_be_used_is_left_out_with_its_reason(prepare_dir: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('questions are not accepted') }}"
    tokenizer.save_pretrained(tmp_path / "base")
    made = ways(tmp_path / "base", prepare_dir)
    assert [way.name for way in made.asked] == [PROMPT, EXAMPLES]
    assert "questions are not accepted" in made.left_out[CHAT]


def test_a_template_too_long_for_the_context_is_left_out(chat_base: Path, prepare_dir: Path) -> None:
    longest = ways(chat_base, prepare_dir, CHAT).asked[0].longest
    (way,) = ways(chat_base, prepare_dir, CHAT, positions=longest + 3).asked
    assert way.room == 3
    made = ways(chat_base, prepare_dir, PROMPT, CHAT, positions=longest)
    assert made.left_out[CHAT] == f"a question has {longest} tokens with it; the base has {longest} positions"


# --- the examples


def test_examples_come_from_train_whole_and_the_question_stands_last(base_dir: Path, prepare_dir: Path) -> None:
    (way,) = ways(base_dir, prepare_dir, EXAMPLES).asked
    assert way.examples == (4, 4)
    pairs = {f"{row.instruction}\n\n### Response:\n{row.output}\n\n" for row in rows_of(prepare_dir, "train")}
    test = rows_of(prepare_dir, "test")
    for row, text in zip(test, texts(way), strict=True):
        examples, _, last = text.rpartition("### Instruction:\n")
        assert last.startswith(row.instruction)
        assert last.endswith("### Response:\n")
        solved = examples.split("### Instruction:\n")[1:]
        assert len(solved) == 4
        assert set(solved) <= pairs
        assert not any(other.instruction in examples for other in test)
    assert way.stop == ("\n### Instruction:",)


def test_the_seed_chooses_the_same_examples_again(base_dir: Path, prepare_dir: Path) -> None:
    first, again, other = (ways(base_dir, prepare_dir, EXAMPLES, seed=seed).asked[0].prompts for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_only_as_many_examples_as_the_context_holds(base_dir: Path, prepare_dir: Path) -> None:
    (way,) = ways(base_dir, prepare_dir, EXAMPLES).asked
    limit = min(map(len, way.prompts)) - 1  # no row has room for all four
    (fewer,) = ways(base_dir, prepare_dir, EXAMPLES, positions=limit + way.room).asked
    assert fewer.examples in ((2, 3), (3, 3))
    assert fewer.longest <= limit
    assert fewer.room == way.room  # examples take nothing from the answer
    assert all(text.endswith("### Response:\n") for text in texts(fewer))


def test_a_row_that_training_would_have_cut_is_no_example(base_dir: Path, prepare_dir: Path) -> None:
    rows = rows_of(prepare_dir, "train")
    with csv_file.row_writer(prepare_dir / "train.csv") as write:
        for row in [*rows[:2], *(replace(row, output="긴 답 " * 400) for row in rows[2:])]:
            write(row)
    longest_row = 400
    (way,) = ways(base_dir, prepare_dir, EXAMPLES, positions=1 << 20, longest_row=longest_row).asked
    assert way.longest <= 5 * longest_row
    assert not any("긴 답" in text for text in texts(way))


def test_a_context_too_small_for_any_example_is_said(base_dir: Path, prepare_dir: Path) -> None:
    plain = ours_of(base_dir, rows_of(prepare_dir, "test"))
    positions = min(map(len, plain.prompts)) + plain.room
    made = ways(base_dir, prepare_dir, positions=positions)
    assert [way.name for way in made.asked] == [PROMPT]
    said = f"none fits with a question into the {positions - plain.room} tokens that a prompt may have"
    assert made.left_out[EXAMPLES] == said
    with pytest.raises(RecipeError, match="cannot be asked with examples in its prompt: none fits") as refused:
        ways(base_dir, prepare_dir, EXAMPLES, positions=positions)
    assert "evaluate.base_prompts" in str(refused.value.hint)


def test_an_answer_that_goes_on_with_an_example_is_cut_there(base_dir: Path, prepare_dir: Path) -> None:
    (way,) = ways(base_dir, prepare_dir, EXAMPLES).asked
    said = way.prompt.backend.encode("답 7\n\n### Instruction:\n질문 8?", add_special_tokens=False).ids

    def continued(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.cat([input_ids, torch.tensor([said] * len(input_ids))], dim=1)

    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None), device="cpu", generate=continued)
    (cut,) = generate.answer(model, way.prompt, way.prompts[:1], max_new_tokens=99, stop=way.stop, task=causal.TASK)
    assert (cut.text, cut.stopped) == ("답 7", True)


# --- before training


def test_a_base_that_could_not_be_asked_is_refused_before_training(base_dir: Path, chat_base: Path) -> None:
    only_chat = EvaluateSection(base_prompts=["chat"])
    with pytest.raises(RecipeError, match=r"with its own chat template: .*has none") as refused:
        before_evaluate.refuse_unaskable(only_chat, "alpaca", base_dir)
    assert "add prompt or examples to evaluate.base_prompts" in str(refused.value.hint)
    before_evaluate.refuse_unaskable(only_chat, "alpaca", chat_base)
    before_evaluate.refuse_unaskable(EvaluateSection(), "alpaca", base_dir)
