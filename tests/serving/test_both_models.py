"""Base and tuned model from one loaded model: each answers as it does when it is loaded alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from appliance.cli import chat
from appliance.errors import RunDirError
from appliance.process.files import read_json
from appliance.prompt import format as prompt_format
from appliance.serving import both_models, loaded_model
from appliance.serving.both_models import BothModels
from appliance.serving.conversation import Conversation
from tests.helpers.finished import edit_json, finished_run
from tests.helpers.in_process import Appliance, command_line

QUESTIONS = ("사과 0?", "배송은 얼마나 걸리나요?", "감 7? 👍🏽")
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def run_path(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never write into it."""
    return finished_run(tmp_path_factory.mktemp("runs") / "shop", base_dir).path


def loaded(run_path: Path, cache_dir: Path) -> BothModels:
    base = both_models.base_of(run_path, cache_dir)
    return both_models.load(run_path, base, cache_dir, max_new_tokens=NEW_TOKENS, temperature=0.0)


@pytest.fixture(scope="module")
def both(run_path: Path, tmp_path_factory: pytest.TempPathFactory) -> BothModels:
    return loaded(run_path, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def appliance(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Appliance]:
    with command_line(monkeypatch, capsys) as call:
        yield call


def answers(model: loaded_model.LoadedModel) -> list[str]:
    return [Conversation(model).say(question).answer for question in QUESTIONS]


def alone(folder: Path, asked_as: loaded_model.LoadedModel) -> list[str]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return answers(replace(asked_as, model=model, without_adapter=False))


def test_each_answers_as_it_does_alone(both: BothModels, run_path: Path, base_dir: Path) -> None:
    assert both.tuned.model is both.base.model
    tuned, base = alone(run_path / "merge" / "model", both.tuned), alone(base_dir, both.base)
    assert all(one != two for one, two in zip(tuned, base, strict=True))
    assert answers(both.tuned) == tuned
    assert answers(both.base) == base
    assert answers(both.tuned) == tuned  # the adapter is on again


def test_an_answer_of_the_base_that_fails_leaves_the_adapter_on(both: BothModels) -> None:
    before = answers(both.tuned)

    def fail(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Conversation(both.tuned).say("사과 0?", of=both.base, write=fail)
    assert answers(both.tuned) == before


def test_a_run_without_an_adapter_has_its_base_loaded_beside_it(tmp_path: Path, base_dir: Path) -> None:
    run = finished_run(tmp_path / "full", base_dir, full=True).path
    both = loaded(run, tmp_path)
    assert both.tuned.model is not both.base.model
    assert answers(both.tuned) == alone(run / "merge" / "model", both.tuned)
    assert answers(both.base) == alone(base_dir, both.base)


def test_the_base_is_asked_in_the_better_of_two_ways(tmp_path: Path, base_dir: Path) -> None:
    base = shutil.copytree(base_dir, tmp_path / "base")
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<assistant>"
    edit_json(base / "tokenizer_config.json", chat_template=template)
    run = finished_run(tmp_path / "shop", base).path
    messages = [*prompt_format.user_message("하나"), {"role": "assistant", "content": "둘"}]
    messages += prompt_format.user_message("셋")
    metrics = run / "evaluate" / "metrics.json"
    for of_prompt, of_chat, words in ((0.2, 0.4, "own chat template"), (0.4, 0.2, "same prompt"), (0.4, None, "same")):
        edit_json(metrics, bases={"prompt": {"f1": of_prompt}, "chat": {"f1": of_chat}, "examples": {"f1": 0.9}})
        both = loaded(run, tmp_path)
        assert words in both.base_asked
        assert both.base.trained_on_turns is False
        text = both.base.tokenizer.decode(both.base.prompt(messages)[0])
        assert ("<user>하나" in text) == (words == "own chat template")
        assert "### Instruction:\n하나" in both.tuned.tokenizer.decode(both.tuned.prompt(messages)[0])


def test_a_changed_base_or_adapter_is_refused(run_path: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run_path, tmp_path / "run")
    recorded = read_json(run / "run.json")["base"]
    edit_json(run / "run.json", base=recorded | {"identity": "0" * 64})
    with pytest.raises(RunDirError, match=r"files of the base model .* have changed since this run was made"):
        both_models.base_of(run, tmp_path)
    edit_json(run / "run.json", base=recorded)
    (run / "train" / "adapter" / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(RunDirError, match="has 4 bytes"):
        loaded(run, tmp_path)


def test_ask_compares(appliance: Appliance, run_path: Path, both: BothModels) -> None:
    question = QUESTIONS[1]
    wanted = [Conversation(model).say(question).answer for model in (both.base, both.tuned)]
    words = ("ask", run_path, question, "--compare", "--max-new-tokens", NEW_TOKENS, "--temperature", 0)
    code, out, _ = appliance(*words, "--json")
    told = json.loads(out)
    assert (code, [told[who]["answer"] for who in ("base", "tuned")]) == (0, wanted)
    assert told["base"]["asked"] == "with the same prompt"
    assert set(told["tuned"]) == {"question", "answer", "stopped", "tokens", "seconds"}
    code, out, _ = appliance(*words)
    shown = [chat.answers_shown.terminal.printable(text) for text in wanted]
    assert (code, out) == (0, f"base with the same prompt:\n{shown[0]}\n\ntuned:\n{shown[1]}\n")
