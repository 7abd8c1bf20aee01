"""One prompt everywhere: the released tokenizer, in the hands of plain transformers, gives the ids that were trained.

On tokenizers of every awkward kind; and each thing that may differ is found when it does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from appliance.errors import GateRefused
from appliance.prompt import format as prompt_format
from appliance.prompt import tokenizer as prompt_tokenizer
from appliance.release import reload
from appliance.release.reload import Request, Seen
from appliance.training import tokenizer_files
from appliance.weights import merge, model_config
from tests.helpers.finished import FinishedRun, edit_json, finished_run

CORPUS = [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "paired with an input that provides further context. ### Instruction: ### Input: ### Response:",
    "배송은 보통 이틀 걸립니다. 가격은 만 원입니다. 👍🏽 사과! 맛있어요. 반품은 7일 안에 하세요!",
    "\n\n### Response:\n사과!\n\n### Response:\n배!",
] * 3
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _learnt(special: list[str], *, use_regex: bool = True) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _adds_bos(*, template: str | None = None) -> PreTrainedTokenizerFast:
    backend = _learnt(["<pad>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )
    tokenizer.chat_template = template
    return tokenizer


def _bos_literal_in_its_template() -> PreTrainedTokenizerFast:
    """As Llama 2's and Mistral's: the base's own template writes <s> itself."""
    return _adds_bos(template="{{ '<s>' }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}")


def _merges_across_the_boundary() -> PreTrainedTokenizerFast:
    """No split before merging: "Response:\\n" and the answer's first letters would be one token in one text."""
    backend = _learnt(["<pad>", "</s>"], use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")


def _hangul_and_emoji() -> PreTrainedTokenizerFast:
    """Byte-level, as Qwen's: half of the test texts fall apart into bytes."""
    backend = _learnt(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _pads_with_eos() -> PreTrainedTokenizerFast:
    backend = _learnt(["</s>", "<|reserved_0|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")


def _normalizes() -> PreTrainedTokenizerFast:
    from tokenizers import normalizers

    backend = _learnt(["<pad>", "</s>"])
    backend.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "adds bos": _adds_bos,
    "bos literal in its template": _bos_literal_in_its_template,
    "merges across the boundary": _merges_across_the_boundary,
    "Hangul and emoji": _hangul_and_emoji,
    "pads with eos": _pads_with_eos,
    "normalizes": _normalizes,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> FinishedRun:
    return finished_run(tmp_path_factory.mktemp("whole") / "run", base_dir)


def released(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    run_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str = "alpaca",
) -> tuple[Path, Request]:
    """A base's tokenizer saved, trained with as `train` does, released as `merge` does; and what is to be found."""
    base_dir, out = folder / "base", folder / "model"
    tokenizer.save_pretrained(base_dir)
    own = prompt_tokenizer.load(base_dir)
    trained = prompt_format.from_transformers(name, own)
    out.mkdir()
    tokenizer_files.write(out, base_dir, trained)
    (out / "prompt.json").write_text(json.dumps({"prompt": name}))
    base_config: dict[str, Any] = {"eos_token_id": 9, "pad_token_id": 9, "do_sample": False, "temperature": 0.6}
    (base_dir / "generation_config.json").write_text(json.dumps(base_config | {"max_length": 20}))
    config = LlamaConfig(vocab_size=600, bos_token_id=1, eos_token_id=9).to_dict()
    (out / "config.json").write_text(json.dumps(config | merge.special_ids(out, config)))
    ids = merge.special_ids(out, base_config)
    model_config.write_generation_config(out, base_config | {"max_length": 20} | ids, model_config.GREEDY)

    # evaluation's ids as recorded by a run on this tokenizer
    def recorded(path: Path) -> list[dict[str, Any]]:
        assert path.name == "proof_rows.json"
        from tests.helpers.finished import SIDES

        rows = [trained.encode(*row[1:]) for row in SIDES["test"]]
        return [{"input_ids": row.input_ids, "prompt_tokens": row.prompt_tokens} for row in rows]

    with monkeypatch.context() as patch:
        patch.setattr(reload, "read_json", recorded)
        return out, reload.request([out], run_path, trained, own)


def looked_at(folder: Path, wanted: Request) -> Seen:
    from dataclasses import asdict

    return reload._look(folder, json.loads(json.dumps(asdict(wanted))))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_one_prompt_everywhere(kind: str, whole: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, wanted = released(tmp_path, TOKENIZERS[kind](), whole.path, monkeypatch)
    assert looked_at(out, wanted) == Seen()
    assert len(wanted.conversations) == 13
    assert sum("evaluation" in one.ids for one in wanted.conversations) == 5
    assert len(wanted.texts) == 10
    made = [one.ids["training"] or [] for one in wanted.conversations]
    if "bos" in kind:
        assert {ids[0] for ids in made} == {wanted.special["bos"]}
        assert {ids.count(wanted.special["bos"] or -1) for ids in made} == {1}


def test_the_bases_own_chat_template(whole: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = _hangul_and_emoji()
    tokenizer.chat_template = CHATML
    out, wanted = released(tmp_path, tokenizer, whole.path, monkeypatch, "chat")
    assert looked_at(out, wanted) == Seen()
    assert wanted.special["eos"] == tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize("name", ["alpaca_oneline", "korean_qa", "qa_tokens"])
def test_every_prompt_format(name: str, whole: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, wanted = released(tmp_path, _adds_bos(), whole.path, monkeypatch, name)
    assert looked_at(out, wanted) == Seen()


def test_what_a_format_refuses_the_release_must_refuse(
    whole: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Gemma's template: no system text."""
    tokenizer = _hangul_and_emoji()
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system text') }}{% endif %}"
    tokenizer.chat_template = refusal + CHATML
    out, wanted = released(tmp_path, tokenizer, whole.path, monkeypatch, "chat")
    assert looked_at(out, wanted) == Seen()
    refused = [one.name for one in wanted.conversations if one.ids["training"] is None]
    assert refused == ["system text", "system text and input", "system text, earlier turns and input"]
    _template(refusal, "")(out)
    differs = "(training): refused in training, accepted here"
    assert looked_at(out, wanted).prompts == [f"{name} {differs}" for name in refused]


def test_the_process_without_torch_sees_what_transformers_with_torch_sees(
    whole: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a release with a fault of each kind."""
    tokenizer = _hangul_and_emoji()
    tokenizer.chat_template = CHATML
    out, wanted = released(tmp_path, tokenizer, whole.path, monkeypatch, "chat")
    _template("<|im_start|>", "<|im_start|> ")(out)
    path = out / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 8, "temperature": 0.6, "max_length": 3}))
    wrong = replace(wanted, texts=(*wanted.texts, ("가격은?", [1, 2, 3])))
    here, process = looked_at(out, wrong), reload.examine(wrong, tmp_path)[str(out)]
    assert process == here
    assert all((here.prompts, here.texts, here.special, here.generation))


def test_a_merge_across_the_boundary_would_be_other_ids() -> None:
    """What the format avoids: in one text the prompt's last ids are not those of the prompt alone."""
    tokenizer = _merges_across_the_boundary()
    prompt = prompt_format.from_transformers("alpaca", tokenizer)
    asked = prompt.prompt_ids(prompt_format.user_message("x"))
    text = prompt.text(prompt_format.user_message("x")) + "사과!"
    assert prompt.backend.encode(text, add_special_tokens=False).ids[: len(asked)] != asked
    assert prompt.encode("x", "", "사과!").input_ids[: len(asked)] == asked


def test_a_base_that_stops_elsewhere_gets_our_ids_and_keeps_its_own(
    whole: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, wanted = released(tmp_path, _adds_bos(), whole.path, monkeypatch)
    written = json.loads((out / "generation_config.json").read_text())
    assert written == {"eos_token_id": [2, 9], "pad_token_id": 0, "bos_token_id": 1, "do_sample": False}
    assert wanted.special == {"bos": 1, "eos": 2, "tokenizer_eos": 2, "pad": 0, "tokenizer_pad": 0}


def _edited(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / name, **changes)


def _template(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "chat_template.jinja"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


def _no_generation_config(folder: Path) -> None:
    """Without the file, transformers makes one of config.json, whose eos is edited away here."""
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", eos_token_id=9)


def _no_bos(folder: Path) -> None:
    saved = json.loads((folder / "tokenizer.json").read_text())
    saved["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(saved))


def _no_merges(folder: Path) -> None:
    saved = json.loads((folder / "tokenizer.json").read_text())
    saved["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(saved))


@pytest.mark.parametrize(
    ("change", "where", "count"),
    [
        (_template("{{- bos_token -}}\n", ""), "prompts", 18),
        (_template("{{- bos_token -}}", "{{- bos_token + bos_token -}}"), "prompts", 18),
        (_template("### Response:\\n", "### Response:"), "prompts", 18),
        (_template("message['content'] + eos_token", "message['content']"), "prompts", 2),
        (_template("state.lead + message['content']", "message['content']"), "prompts", 3),
        (_no_bos, "texts", 10),
        (_no_merges, "texts", 9),
        (_edited("tokenizer_config.json", pad_token="</s>"), "special", 2),
        (_edited("tokenizer_config.json", eos_token="<pad>"), "special", 2),
        (_edited("config.json", eos_token_id=9), "special", 1),
        (_edited("config.json", pad_token_id=None), "special", 1),
        (_edited("generation_config.json", eos_token_id=[9]), "special", 1),
        (_edited("generation_config.json", eos_token_id=None), "special", 1),
        (_edited("generation_config.json", bos_token_id=5), "special", 1),
        (_no_generation_config, "special", 2),
        (_edited("generation_config.json", max_length=20), "generation", 1),
        (_edited("generation_config.json", max_new_tokens=8), "generation", 1),
        (_edited("generation_config.json", do_sample=False, temperature=0.5), "generation", 1),
    ],
)
def test_each_difference_is_found(
    change: Callable[[Path], None], where: str, count: int, whole: FinishedRun, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out, wanted = released(tmp_path, _adds_bos(), whole.path, monkeypatch)
    change(out)
    seen = looked_at(out, wanted)
    assert len(getattr(seen, where)) == count, getattr(seen, where)
    names = {"prompts": "one_prompt_everywhere", "texts": "same_tokens", "special": "same_special_ids"}
    failed = {gate.name: gate for gate in reload.judge(wanted, {str(out): seen}) if not gate.passed}
    gate = failed[names.get(where, "generation_config_sane")]
    assert gate.measured == count
    assert "model: " in gate.meaning


def test_what_was_not_asked_does_not_pass() -> None:
    wanted = Request(("a", "b"), (), (), {})
    assert all(gate.passed for gate in reload.judge(wanted, {"a": Seen(), "b": Seen()}))
    assert not any(gate.passed for gate in reload.judge(wanted, {"a": Seen()}))
    assert not any(gate.passed for gate in reload.judge(Request((), (), (), {}), {}))


def test_the_process_knows_nothing_of_our_prompts() -> None:
    code = (
        "import sys, appliance.release.reload; "
        "print([m for m in ('appliance.prompt.format', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_folder_that_does_not_load_is_refused_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(GateRefused, match="does not load with plain transformers") as caught:
        reload.examine(Request((str(tmp_path / "model"),), (), (), {}), tmp_path)
    assert "roundtrip.log" in caught.value.hint
    assert "Traceback" in (tmp_path / "roundtrip.log").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "roundtrip.log"}
