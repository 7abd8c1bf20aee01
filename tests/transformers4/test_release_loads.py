"""A release in the hands of transformers 4: the same prompts, answers and special tokens as with ours.

Needs an environment of its own: `make test-transformers4`. Not part of `make test`.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.prompt import round_trip, tokenizer
from appliance.release import card, usage_snippets
from appliance.tasks import extract, find, seq2seq
from appliance.tasks.classify import Classify
from appliance.tasks.task import Task
from appliance.training import tokenizer_files
from appliance.weights import merge, rope
from tests.helpers.classifiers import random_adapter, tiny_encoder
from tests.helpers.encoder_decoders import tiny_encoder_decoder
from tests.helpers.finished import finished_run
from tests.helpers.models import Family, tiny_base
from tests.helpers.tokenizer_kinds import llama2_folder, qwen_folder
from tests.transformers4 import child

PYTHON = Path(os.environ["TEST_TRANSFORMERS4"]).absolute()  # set by `make test-transformers4`
CHILD = Path(__file__).with_name("child.py")

# family of the weights, and the tokenizer: one that transformers 5 saved, or the files as the base's makers left them
BASES: dict[str, tuple[Family, Callable[[Path], Path] | None]] = {
    "saved by transformers 5": ("llama", None),
    "Llama 2": ("llama", llama2_folder),
    "Qwen 3": ("qwen3", qwen_folder),
    "Gemma 3": ("gemma3", None),
}


# task, kind of the base and its maker; what is merged and released is an adapter
OTHER_TASKS: dict[str, tuple[Task, str, Callable[..., Path]]] = {
    "T5": (seq2seq.TASK, "t5", tiny_encoder_decoder),
    "BART": (seq2seq.TASK, "bart", tiny_encoder_decoder),
    "a classifier, BERT": (Classify(("기쁨", "슬픔", "중립")), "bert", tiny_encoder),
    "a classifier, RoBERTa": (Classify(("기쁨", "슬픔", "중립")), "roberta", tiny_encoder),
    "a classifier, DistilBERT with BERT's tokenizer": (
        Classify(("기쁨", "슬픔", "중립")),
        "distilbert-of-bert",
        tiny_encoder,
    ),
}
READERS = {
    "a reader, BERT": "bert",
    "a reader, RoBERTa": "roberta",
    "a reader, DistilBERT": "distilbert-of-bert",
}
TEXT = "사과 배 감 좋아요 1 2 3 최고 늦어요 " * 5
ASKED = ("가격은?", "배송은 며칠?", " Below ▁")


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What is asked of each release."""
    found = {}
    for kind, (family, words) in BASES.items():
        folder = tmp_path_factory.mktemp("kind")
        base = a_base(folder, family, words)
        run = finished_run(folder / "run", base)
        found[kind] = {
            "base": str(base),
            "model": str(run.path / "merge" / "model"),
            "adapter": str(run.path / "train" / "adapter"),
            "conversations": [prompt_format.user_message(text, more) for text in ASKED for more in ("", "size\tL")],
        }
    for kind, (task, shape, make) in OTHER_TASKS.items():
        folder = tmp_path_factory.mktemp("other")
        found[kind] = a_release(folder, make(folder / "base", shape), task)
    for kind, shape in READERS.items():
        folder = tmp_path_factory.mktemp("reader")
        found[kind] = a_reader(folder, tiny_encoder(folder / "base", shape), has_types=shape == "bert")
    return {
        kind: {"class": "AutoModelForCausalLM", "texts": list(round_trip.TEXTS), **one} for kind, one in found.items()
    }


@pytest.fixture(scope="module")
def with_4(requests: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process with transformers 4 answers."""
    path = tmp_path_factory.mktemp("asked") / "requests.json"
    files.write_json(path, requests)
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(PYTHON), str(CHILD), str(path)], capture_output=True, text=True, check=False, env=environ, cwd=path.parent
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(files.read_json(path.with_suffix(".result")))


@pytest.mark.parametrize("kind", [*BASES, *OTHER_TASKS, *READERS])
def test_a_release_gives_the_same_with_transformers_4(
    kind: str, requests: dict[str, dict[str, Any]], with_4: dict[str, Any]
) -> None:
    theirs, ours = with_4["answers"][kind], child.answers(requests[kind])
    assert theirs["model"] == ours["model"]
    if rope.is_newer_only(files.read_json(Path(requests[kind]["base"], "config.json"))):
        assert theirs["adapter"]["likeliest logits"] != ours["adapter"]["likeliest logits"]  # the card leaves 4 out
        likeliest = ("likeliest logits", "answers", "spelt")
        theirs["adapter"], ours["adapter"] = (
            {key: value for key, value in one["adapter"].items() if key not in likeliest} for one in (theirs, ours)
        )
    assert theirs["adapter"] == ours["adapter"]
    assert any(len(set(map(str, ids))) > 1 for ids in ours["model"]["answers"]), (
        "one token again and again shows nothing"
    )


def test_both_make_types_of_tokens_for_a_reader_that_tells_them_apart(with_4: dict[str, Any]) -> None:
    """transformers 4's pipeline gives the model what the tokenizer makes."""
    for kind, shape in READERS.items():
        for types in with_4["answers"][kind]["model"]["types"]:
            assert (types is not None and sorted(set(types)) == [0, 1]) == (shape == "bert")


def test_the_card_names_the_versions_that_were_seen(with_4: dict[str, Any]) -> None:
    ours = {name: importlib.metadata.version(name) for name in ("transformers", "peft")}
    assert [tuple(found.values()) for found in (with_4["versions"], ours)] == [*card.SEEN_TO_LOAD]


def test_a_task_says_whether_transformers_4_was_seen_to_load_its_releases() -> None:
    tried = {"causal", "extract", *(task.name for task, _, _ in OTHER_TASKS.values())}
    assert tried == {name for name in find.NAMES if find.named(name).tried_with_transformers_4}


def a_release(folder: Path, base: Path, task: Task) -> dict[str, Any]:
    """What is asked of the release of an adapter, as `train` and `merge` leave it."""
    random_adapter(folder / "adapter", base, task, strength=0.2)  # so large that its answers change
    prompt = prompt_format.from_transformers("source", tokenizer.load(base))
    tokenizer_files.write(folder / "adapter", base, prompt)
    ends = {"prompt": "source", "eos": prompt.eos_token, "pad": prompt.pad_token}
    files.write_json(folder / "adapter" / "prompt.json", ends)
    merge.merge_adapter(base, folder / "adapter", folder / "model", dtype="bfloat16", task=task)
    return {
        "class": task.auto_class,
        "base": str(base),
        "model": str(folder / "model"),
        "adapter": str(folder / "adapter"),
        "conversations": [prompt_format.user_message(text) for text in ASKED],
    }


def a_reader(folder: Path, base: Path, *, has_types: bool) -> dict[str, Any]:
    """What is asked of the release of an adapter that finds answers in texts, which are read in windows."""
    adapter, model, task = folder / "adapter", folder / "model", extract.TASK
    random_adapter(adapter, base, task, strength=0.2)
    prompt = prompt_format.from_transformers("context", tokenizer.load(base))
    tokenizer_files.write(adapter, base, prompt)
    files.write_json(adapter / "prompt.json", {"prompt": "context", "eos": prompt.eos_token, "pad": prompt.pad_token})
    merge.merge_adapter(base, adapter, model, dtype="bfloat16", task=task)
    how = {"max_seq_length": 64, "stride": 8, "max_answer_tokens": 6, "token_types": has_types, "threshold": 0.0}
    shown = usage_snippets.with_answers_of_peft(str(base), None, str(adapter), how)
    code = {"model": usage_snippets.finder(str(model), how), "adapter": shown.split("python\n")[1].split("print(")[0]}
    return {"base": str(base), "code": code, "asked": [(question, TEXT + question) for question in ASKED]}


def a_base(folder: Path, family: Family, words: Callable[[Path], Path] | None) -> Path:
    """A tiny base as transformers 5 saves it or, with the tokenizer files of `words`, as its makers left it."""
    if words is None:
        base = tiny_base(folder / "base", family=family)
        config = files.read_json(base / "config.json")
        rotary = config["rope_parameters"]  # not the architecture's defaults, which transformers 4 would take by itself
        for kind in rotary.values() if "full_attention" in rotary else [rotary]:
            kind["rope_theta"] *= 1.5
        files.write_json(base / "config.json", config)
        return base
    made = words(folder / "words")
    backend = PreTrainedTokenizerFast(tokenizer_file=str(made / "tokenizer.json"))
    base = tiny_base(folder / "base", family=family, words=backend, tokenizer=False)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(made / name, base / name)
    config = files.read_json(base / "config.json")
    del config["rope_parameters"]
    files.write_json(base / "config.json", config | {"rope_theta": 15000.0})
    return base
