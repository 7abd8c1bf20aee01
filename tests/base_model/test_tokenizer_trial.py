"""Tokenizers and chat templates that never end, take all the memory or end the process: refused before they are used.

Every trial is a fork of this process, with limits of its own.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance import bounds
from appliance.base_model import config_values, tokenizer_trial
from appliance.base_model.tokenizer_trial import Limits
from appliance.errors import ApplianceError, DataError, EnvironmentUnavailable, RecipeError
from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.prompt import tokenizer
from appliance.rows.csv_file import Row
from tests.helpers.models import tiny_tokenizer
from tests.helpers.tokenizer_kinds import CORPUS, KINDS, byte_level, folder_of

SMALL = Limits(cpu_seconds=0.5, wall_seconds=60, memory_bytes=256 << 20)
ROWS = [
    Row(2, "a" * 40 + " b", "", "답 " * 10),
    Row(7, "가격은? a aa" * 50, "a" * 40 + " b", "만 원입니다 " * 50),
]
FILE, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
TOO_LONG, TOO_LARGE = "did not end within 0.5 s of computing", "took more than 256 MiB of memory"

Spoil = Callable[[Path], object]


def _edited(name: str, **changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        found = json.loads((folder / name).read_text(encoding="utf-8")) | changes
        (folder / name).write_text(json.dumps(found), encoding="utf-8")

    return spoil


def _template(text: str) -> Spoil:
    return lambda folder: (folder / TEMPLATE).write_text(text, encoding="utf-8")


def _normalizer(*steps: dict[str, Any]) -> Spoil:
    return _edited(FILE, normalizer={"type": "Sequence", "normalizers": list(steps)})


def _split(pattern: str) -> Spoil:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return _edited(FILE, pre_tokenizer={"type": "Sequence", "pretokenizers": [step, byte_level]})


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _decoder(step: dict[str, Any]) -> Spoil:
    return _edited(FILE, decoder=step)


def _without_unknown(folder: Path) -> None:
    _edited(FILE, model={"type": "WordLevel", "unk_token": "?", "vocab": {"<pad>": 0, "<s>": 1, "</s>": 2}})(folder)


def _large_vocabulary(folder: Path) -> None:
    vocabulary = ",".join(f'"t{i}":{i}' for i in range(2_000_000))
    text = (folder / FILE).read_text(encoding="utf-8").replace('"<pad>":', f'{vocabulary},"<pad>":', 1)
    (folder / FILE).write_text(text, encoding="utf-8")


# What is spoilt, how, and what the message says behind the folder's path.
REFUSED: dict[str, tuple[Spoil, str]] = {
    "a rewriting that multiplies": (
        _normalizer(*[_replace({"String": "a"}, "a" * 1000)] * 4),
        f"{FILE}: looking for its special tokens {TOO_LARGE}",
    ),
    "a rewriting of every character": (
        _normalizer(*[_replace({"Regex": "."}, "b" * 100_000)] * 3),
        f"{FILE}: looking for its special tokens {TOO_LARGE}",
    ),
    "long texts in front of every text": (
        _normalizer(*[{"type": "Prepend", "prepend": "x" * 1_000_000}] * 40),
        f"{FILE}: looking for its special tokens {TOO_LARGE}",
    ),
    "a decoder that multiplies": (
        _decoder({"type": "Sequence", "decoders": [_replace({"String": "a"}, "a" * 1000)] * 4}),
        f"{FILE}: tokenizing short texts {TOO_LARGE}",
    ),
    "a pattern that matches nothing": (
        _normalizer(_replace({"Regex": ""}, "b")),
        f"{FILE}: looking for its special tokens failed: PanicException: index out of bounds",
    ),
    "a decoder that strips beyond the end": (
        _decoder({"type": "Strip", "content": "a", "start": 10**12, "stop": 10**12}),
        f"{FILE}: tokenizing short texts failed: PanicException: index out of bounds",
    ),
    "a table of characters of any size": (
        _normalizer({"type": "Precompiled", "precompiled_charsmap": "QUFB" * 7}),
        f"{FILE}: reading it {TOO_LARGE}",
    ),
    "a post-processor that names no token": (
        _edited(
            FILE,
            post_processor={
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<?>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            },
        ),
        f"{FILE}: looking for its special tokens failed: PanicException: no entry found for key",
    ),
    "no unknown token": (
        _without_unknown,
        f"{FILE}: looking for its special tokens failed: Exception: WordLevel error",
    ),
    "a vocabulary of any size": (_large_vocabulary, f"{FILE}: reading it {TOO_LARGE}"),
    "a pattern that takes too many attempts": (
        _split(r"(a+)+b"),
        f"{FILE}: tokenizing line 7 of the CSV failed: the base's tokenizer fails on it: Onig: Regex search",
    ),
    "loops in each other": (
        _template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
        f"{TEMPLATE}: rendering the chat template {TOO_LONG}",
    ),
    "a macro that calls itself twice": (
        _template("{% macro f(x) %}{% if x %}{{ f(x-1) }}{{ f(x-1) }}{% endif %}{% endmacro %}{{ f(60) }}"),
        f"{TEMPLATE}: rendering the chat template {TOO_LONG}",
    ),
    "filler text without end": (
        _template("{{ lipsum(n=100000000) }}"),
        f"{TEMPLATE}: rendering the chat template {TOO_LONG}",
    ),
    "a text times a number": (
        _template("{{ messages[0]['content'] * 10**10 }}"),
        f"{TEMPLATE}: rendering the chat template {TOO_LARGE}",
    ),
    "a constant times a number": (
        _edited(CONFIG, chat_template="{{ 'a' * 10**10 }}"),
        f"{CONFIG}: rendering the chat template {TOO_LARGE}",
    ),
    "a text that doubles": (
        _template(
            "{% set s = namespace(x='ab') %}{% for i in range(60) %}{% set s.x = s.x + s.x %}{% endfor %}{{ s.x }}"
        ),
        f"{TEMPLATE}: rendering the chat template {TOO_LARGE}",
    ),
    "padding to a width": (
        _template("{{ '%0100000000000d' % 1 }}"),
        f"{TEMPLATE}: rendering the chat template {TOO_LARGE}",
    ),
    "a template that loops for a long question only": (
        _template(
            "{% if messages[0]['content']|length > 500 %}{% for i in range(99999) %}{% for j in range(99999) %}"
            "{% endfor %}{% endfor %}{% endif %}" + CHAT
        ),
        f"{TEMPLATE}: rendering the chat template with line 7 of the CSV {TOO_LONG}",
    ),
}
# What does no harm to a process. A damaged file is refused by the trial; a template by the prompt format that needs it.
HARMLESS: dict[str, tuple[Spoil, type[ApplianceError], str]] = {
    "a template cut off": (_template(CHAT[:60]), RecipeError, "does not accept a question as text"),
    "a template cut off in a block": (_template(CHAT[:-11]), RecipeError, "Unexpected end of template"),
    "5,000 parentheses": (_template("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"), RecipeError, "RecursionError"),
    "5,000 brackets": (_template("{{ " + "[" * 5000 + "]" * 5000 + " }}"), RecipeError, "RecursionError"),
    "3,000 blocks in each other": (
        _template("{% if 1 %}" * 3000 + "{% endif %}" * 3000),
        RecipeError,
        "RecursionError",
    ),
    "a macro that calls itself": (
        _template("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}"),
        RecipeError,
        "RecursionError",
    ),
    "a range beyond the sandbox's": (
        _template("{% for i in range(10**9) %}x{% endfor %}"),
        RecipeError,
        "Range too big",
    ),
    "a text plus a number": (_template("{{ 1 + 'a' }}"), RecipeError, "TypeError"),
    "a division by zero": (_template("{{ 1 / 0 }}"), RecipeError, "ZeroDivisionError"),
    "a number of 100,000 digits": (_template("{{ " + "9" * 100_000 + " }}"), RecipeError, "ValueError"),
    "a template in other bytes": (
        lambda folder: (folder / TEMPLATE).write_bytes(b"\xff"),
        EnvironmentUnavailable,
        f"{TEMPLATE} is damaged: 'utf-8' codec",
    ),
    "a template of 2 MB": (
        _template("x" * 2_000_000),
        EnvironmentUnavailable,
        f"{TEMPLATE} is damaged: it has 2,000,000",
    ),
    "templates without one": (
        _edited(CONFIG, chat_template=[{"name": "default"}]),
        EnvironmentUnavailable,
        f"{CONFIG}: chat_template is [{{'name': 'default'}}], expected a text, or several by name",
    ),
    "a number for a template": (
        _edited(CONFIG, chat_template={"default": 5}),
        EnvironmentUnavailable,
        "chat_template is",
    ),
    "eos_token: 5": (
        _edited(CONFIG, eos_token=5),
        EnvironmentUnavailable,
        f"{CONFIG}: eos_token is 5, expected a text",
    ),
    "half a surrogate pair": (_edited(CONFIG, eos_token="\ud800"), EnvironmentUnavailable, "eos_token is '\\ud800'"),
    "tokens without content": (_edited(CONFIG, extra_special_tokens={"a": {}}), EnvironmentUnavailable, "is {'a': {}}"),
    "NaN for a length": (
        _edited(CONFIG, model_max_length=float("nan")),
        EnvironmentUnavailable,
        "model_max_length is nan",
    ),
    "a class that is a list": (
        _edited(CONFIG, tokenizer_class=["A"]),
        EnvironmentUnavailable,
        "tokenizer_class is ['A']",
    ),
    "a damaged table of characters": (
        _normalizer({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        EnvironmentUnavailable,
        f"{FILE} is damaged: Precompiled",
    ),
    "a pattern that is none": (_split("("), EnvironmentUnavailable, f"{FILE} is damaged: "),
    "steps nested too deeply": (
        _edited(FILE, normalizer=json.loads('{"type": "Sequence", "normalizers": [' * 90 + "]}" * 90)),
        EnvironmentUnavailable,
        f"{FILE} is damaged: recursion limit exceeded",
    ),
}


@pytest.fixture(autouse=True)
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has passed yet."""
    monkeypatch.setattr(tokenizer_trial, "_passed", set())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text('{"vocab_size": 320}', encoding="utf-8")
    return tmp_path / "base"


@pytest.mark.parametrize("variant", REFUSED)
def test_what_would_harm_this_process_is_refused(folder: Path, variant: str) -> None:
    spoil, seen = REFUSED[variant]
    spoil(folder)
    limits = replace(SMALL, cpu_seconds=20) if seen.endswith(TOO_LARGE) else SMALL  # a slow machine is no sooner full
    with pytest.raises(EnvironmentUnavailable) as caught:
        tokenizer_trial.refuse_unusable(folder, ROWS, limits)
    assert str(caught.value).startswith(f"{folder}/{seen}")
    assert caught.value.hint


@pytest.mark.parametrize("variant", HARMLESS)
def test_what_does_no_harm_is_named(folder: Path, variant: str) -> None:
    spoil, kind, seen = HARMLESS[variant]
    spoil(folder)

    def tried() -> None:
        tokenizer_trial.refuse_unusable(folder, ROWS, SMALL)

    def used() -> None:
        prompt_format.from_folder("chat", folder)

    if kind is RecipeError:
        tried()
    for act in (used, tried) if kind is EnvironmentUnavailable else (used,):
        with pytest.raises(kind) as caught:
            act()
        assert seen in str(caught.value)
        assert caught.value.hint


@pytest.mark.parametrize("kind", KINDS)
def test_honest_tokenizers_pass(tmp_path: Path, kind: str) -> None:
    base = folder_of(tmp_path / "base", KINDS[kind](), "llama")
    (base / TEMPLATE).write_text(CHAT, encoding="utf-8")
    tokenizer_trial.refuse_unusable(base, ROWS, SMALL)
    assert len(tokenizer_trial._passed) == 1


def _sentencepiece(folder: Path) -> None:
    """As older Llama bases have it: a tokenizer.model and no tokenizer.json."""
    import sentencepiece

    texts = iter([*CORPUS, "가격은 만 원입니다 답 질문 aaaa b"] * 5)
    with (folder / "tokenizer.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts, model_writer=model, vocab_size=420, model_type="bpe", byte_fallback=True,
            minloglevel=2,
        )  # fmt: skip
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    files.write_json(folder / CONFIG, {"tokenizer_class": "LlamaTokenizer", **names})


def _merges(folder: Path) -> None:
    """As GPT-2 and its like have it: vocab.json and merges.txt."""
    made = byte_level(["<|endoftext|>"])
    made.model.save(str(folder))
    files.write_json(folder / CONFIG, {"tokenizer_class": "GPT2Tokenizer"})


WITHOUT_TOKENIZER_JSON = {"tokenizer.model": _sentencepiece, "vocab.json": _merges}


@pytest.fixture(params=WITHOUT_TOKENIZER_JSON)
def older(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A base that only transformers can read; its folder has the name of the file that holds its vocabulary."""
    folder = tmp_path / request.param
    folder.mkdir()
    WITHOUT_TOKENIZER_JSON[request.param](folder)
    files.write_json(folder / "config.json", {"model_type": "llama", "vocab_size": 600})
    return folder


def test_a_base_without_tokenizer_json_is_tried_as_transformers_reads_it(older: Path) -> None:
    tokenizer_trial.refuse_unusable(older, ROWS, SMALL)
    assert len(tokenizer_trial._passed) == 1
    _template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")(older)
    with pytest.raises(
        EnvironmentUnavailable, match=r"rendering the chat template did not end within 2 s of computing"
    ):
        tokenizer_trial.refuse_unusable(older, ROWS, SMALL)
    (older / TEMPLATE).unlink()
    (older / older.name).write_bytes(b"\x00\xff" * 400)
    with pytest.raises(EnvironmentUnavailable, match=r"its tokenizer does not load"):
        tokenizer_trial.refuse_unusable(older, ROWS, SMALL)
    (older / older.name).unlink()
    if older.name == "tokenizer.model":
        tokenizer_trial.refuse_unusable(older, ROWS, SMALL)  # there is nothing to try: whoever needs it refuses it


def test_a_base_is_tried_once_and_again_when_a_file_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer_trial.refuse_unusable(folder, ROWS, SMALL)
    with monkeypatch.context() as patch:
        patch.delattr(tokenizer_trial, "Worker")
        tokenizer_trial.refuse_unusable(folder, ROWS, SMALL)
    _template("{{ 'a' * 10**10 }}")(folder)
    with pytest.raises(EnvironmentUnavailable, match="256 MiB"):
        tokenizer_trial.refuse_unusable(folder, ROWS, SMALL)


def test_a_trial_that_gets_no_turn_ends_all_the_same(folder: Path) -> None:
    spoil, _ = REFUSED["loops in each other"]
    spoil(folder)
    with pytest.raises(EnvironmentUnavailable, match=r"chat template did not end within 1 s$"):
        tokenizer_trial.refuse_unusable(folder, ROWS, Limits(cpu_seconds=60, wall_seconds=1))


def test_a_child_that_is_killed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does if the machine is out of memory."""
    monkeypatch.setattr(prompt_format, "from_folder", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    seen = (
        r"tokenizer.json: looking for its special tokens ended the process that tried it, which was killed by SIGKILL, "
    )
    with pytest.raises(EnvironmentUnavailable, match=seen):
        tokenizer_trial.refuse_unusable(folder, ROWS, SMALL)


def test_a_chat_template_sees_no_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it got out of its sandbox: the trial's process has none."""
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
    seen = []

    def looks(*_: object, **__: object) -> None:
        seen.append(os.environ.get("HF_TOKEN"))
        raise EnvironmentUnavailable(f"HF_TOKEN is {os.environ.get('HF_TOKEN')}")

    monkeypatch.setattr(prompt_format, "from_folder", looks)
    with pytest.raises(EnvironmentUnavailable, match="HF_TOKEN is None"):
        tokenizer_trial.refuse_unusable(folder, ROWS, SMALL)
    assert not seen, "it ran in this process"


def test_a_row_that_the_tokenizer_gives_up_on_is_a_bad_row_of_its_own(folder: Path) -> None:
    _split(r"(a+)+b")(folder)
    rows = [Row(2, "a" * 40 + " c", "", "x"), Row(3, "가격은?", "", "만 원")]
    tokenizer_trial.refuse_unusable(folder, rows, SMALL)
    prompt = prompt_format.from_folder("korean_qa", folder)
    with pytest.raises(DataError, match="the base's tokenizer fails on it: Onig: Regex search error: retry-limit"):
        prompt.encode("a" * 40 + " c", "", "x")
    assert prompt.encode("가격은?", "", "만 원").input_ids


def test_a_panic_while_a_base_loads_is_no_traceback(folder: Path) -> None:
    HARMLESS["a damaged table of characters"][0](folder)
    with pytest.raises(EnvironmentUnavailable, match=r"its tokenizer does not load: Precompiled"):
        tokenizer.load(folder)


@pytest.mark.parametrize(
    ("config", "seen"),
    [
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, expected a finite number"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rope_scaling": {"factor": "8"}}, "rope_scaling.factor is '8'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": float("nan")}}}, "full_attention.rope_theta is nan"),
        ({"rope_parameters": {"full_attention": []}}, "full_attention is [], expected an object"),
        ({"temperature": True}, "temperature is True"),
    ],
)
def test_numbers_of_a_config_are_finite(config: dict[str, Any], seen: str) -> None:
    with pytest.raises(EnvironmentUnavailable) as caught:
        config_values.refuse_odd(config, "base/config.json")
    assert f"base/config.json: {'rope_parameters.' * ('full' in seen)}{seen}" in str(caught.value)


def test_every_file_of_a_tokenizer_has_a_bound() -> None:
    from appliance.weights import model_files

    assert {*model_files.TOKENIZER_FILES, "config.json", "generation_config.json"} <= bounds.LARGEST.keys()
