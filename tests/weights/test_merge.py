"""The merge: bit-equal to peft's float32 merge for every kind of base and adapter, atomic, and small in memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from appliance.errors import EnvironmentUnavailable, GateRefused, Interrupted
from appliance.process import signals
from appliance.process.hashed_file import HashedFile
from appliance.tasks import causal
from appliance.weights import merge, shards
from appliance.weights.merge import merge_adapter
from tests.helpers.models import change_adapter, tiny_adapter, tiny_base

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    # name: base, adapter, dtype of the merged model
    "llama": ({}, {}, "bfloat16"),
    "llama, tied": ({"tied": True}, {}, "bfloat16"),
    "llama, shards": ({"sharded": True}, {"r": 4, "alpha": 3}, "bfloat16"),
    "llama, float16": ({"dtype": "float16"}, {}, "float16"),
    "llama, float32 into bfloat16": ({"dtype": "float32"}, {}, "bfloat16"),
    "llama, bfloat16 into float16": ({"dtype": "bfloat16"}, {}, "float16"),
    "llama, head": ({}, {"target_modules": ["q_proj", "lm_head"]}, "bfloat16"),
    "qwen3, tied, shards": ({"family": "qwen3", "tied": True, "sharded": True}, {}, "bfloat16"),
    "rslora": ({"family": "qwen3"}, {"rslora": True}, "bfloat16"),
    "dora": ({}, {"dora": True}, "bfloat16"),
    "token rows, tied": ({"tied": True, "family": "qwen3"}, {"trainable_token_indices": [2, 300]}, "bfloat16"),
    "token rows, transposed weights": (
        {"family": "gpt2", "tied": True},
        {"fan_in_fan_out": True, "trainable_token_indices": [2]},
        "bfloat16",
    ),
    "token rows, untied, shards": (
        {"sharded": True},
        {"dora": True, "trainable_token_indices": {"model.embed_tokens": [5, 2], "lm_head": [2, 5]}},
        "float16",
    ),
    "patterns": (
        {},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"v_proj": 5}, "rslora": True},
        "bfloat16",
    ),
    "transposed weights": ({"family": "gpt2"}, {"fan_in_fan_out": True}, "bfloat16"),
    "transposed weights, dora": ({"family": "gpt2"}, {"fan_in_fan_out": True, "dora": True}, "float16"),
}

# peft warns of just those combinations that these tests are about
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:Model has `tie_word_embeddings=True`:UserWarning",
        "ignore:fan_in_fan_out is set to False:UserWarning",
        "ignore:Setting `save_embedding_layers` to `True`:UserWarning",
    ),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return tiny_adapter(tmp_path_factory.mktemp("adapter"), base)


def peft_merge(base_dir: Path, adapter_dir: Path, dtype: str) -> dict[str, torch.Tensor]:
    """What the merge has to be: peft's own on a float32 model, rounded once."""
    model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter_dir).merge_and_unload()
    return {name: tensor.to(getattr(torch, dtype)) for name, tensor in merged.state_dict().items()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("case", CASES)
def test_bit_equal_to_peft_in_float32(case: str, tmp_path: Path) -> None:
    base_options, adapter_options, dtype = CASES[case]
    base_dir = tiny_base(tmp_path / "base", **base_options)
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir, **adapter_options)
    out = tmp_path / "out"

    summary = merge_adapter(base_dir, adapter_dir, out, dtype=dtype, task=causal.TASK)

    wanted, got, stored = peft_merge(base_dir, adapter_dir, dtype), weights(out), weights(base_dir)
    assert got.keys() == stored.keys()
    for name, tensor in got.items():
        assert tensor.dtype == getattr(torch, dtype), name
        assert torch.equal(tensor, wanted[name]), name
    changed = sum(not torch.equal(got[name], stored[name].to(getattr(torch, dtype))) for name in got)
    parts = load_file(adapter_dir / "adapter_model.safetensors")
    modules = len([key for key in parts if "lora_A" in key or "trainable_tokens" in key])
    assert changed == summary.merged_tensors == modules > 0
    assert summary.tensors == len(stored)
    assert summary.bytes == sum(tensor.nbytes for tensor in got.values())
    assert {p.name for p in out.glob("*.safetensors*")} == {p.name for p in base_dir.glob("*.safetensors*")}
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == getattr(torch, dtype)
    assert torch.isfinite(model(torch.tensor([[1, 5, 9]])).logits).all()


def test_a_tied_head_that_is_stored_as_well_gets_the_trained_rows(tmp_path: Path) -> None:
    base_dir = tiny_base(tmp_path / "base", tied=True)
    path = base_dir / "model.safetensors"
    stored = load_file(path)
    head = {"lm_head.weight": stored["model.embed_tokens.weight"].clone()}
    save_file(stored | head, path, metadata={"format": "pt"})
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir, trainable_token_indices=[2])

    merge_adapter(base_dir, adapter_dir, tmp_path / "out", dtype="bfloat16", task=causal.TASK)

    got = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(got["lm_head.weight"], got["model.embed_tokens.weight"])
    assert not torch.equal(got["lm_head.weight"][2], head["lm_head.weight"][2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {k: v for k, v in tensors.items() if "trainable_tokens" not in k}, "has no rows for"),
        (
            lambda tensors: {k: v.repeat(2, 1) if "trainable_tokens" in k else v for k, v in tensors.items()},
            "has 2 rows; adapter_config.json names 1 token",
        ),
        (
            lambda tensors: {k: v[:, :8] if "trainable_tokens" in k else v for k, v in tensors.items()},
            r"shape \(320, 64\).*8 numbers each",
        ),
    ],
    ids=["missing", "too many", "too short"],
)
def test_rows_that_are_not_those_of_the_config_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    base_dir = tiny_base(tmp_path / "base", tied=True)
    whole = tiny_adapter(tmp_path / "whole", base_dir, trainable_token_indices=[2])
    spoilt = change_adapter(whole, tmp_path / "spoilt", change)
    with pytest.raises(GateRefused, match=message):
        merge_adapter(base_dir, spoilt, tmp_path / "out", dtype="bfloat16", task=causal.TASK)
    assert not (tmp_path / "out").exists()


def test_names_without_the_inner_model_are_found(tmp_path: Path) -> None:
    """The original GPT-2 files say h.0 where the module is called transformer.h.0."""
    base_dir = tiny_base(tmp_path / "base", family="gpt2")
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir)
    wanted = peft_merge(base_dir, adapter_dir, "bfloat16")
    path = base_dir / "model.safetensors"
    stripped = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    save_file(stripped, path, metadata={"format": "pt"})

    merge_adapter(base_dir, adapter_dir, tmp_path / "out", dtype="bfloat16", task=causal.TASK)

    got = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(tensor, wanted.get(f"transformer.{name}", wanted.get(name))) for name, tensor in got.items())


def test_files_equal_the_reference_writers(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge_adapter(base, adapter, out, dtype="bfloat16", task=causal.TASK)
    save_file(load_file(out / "model.safetensors"), tmp_path / "reference.safetensors", metadata={"format": "pt"})
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "reference.safetensors").read_bytes()


def test_writer_keeps_integers_scalars_empty_and_korean_names(tmp_path: Path) -> None:
    tensors = {
        "가중치": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "count": torch.tensor(7, dtype=torch.int64),
        "none": torch.zeros(0, 4, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False, True]),
    }
    save_file(tensors, tmp_path / "reference.safetensors", metadata={"format": "pt"})
    found = shards.headers(tmp_path / "reference.safetensors", tensors)
    shards.write_shard(tmp_path / "own.safetensors", found, lambda header: [tensors[header.name]])
    assert (tmp_path / "own.safetensors").read_bytes() == (tmp_path / "reference.safetensors").read_bytes()


def test_a_second_merge_gives_identical_files(base: Path, adapter: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        merge_adapter(base, adapter, tmp_path / name, dtype="bfloat16", task=causal.TASK)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_long_tensors_are_written_in_runs(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_adapter(base, adapter, tmp_path / "whole", dtype="float16", task=causal.TASK)
    monkeypatch.setattr(merge, "_RUN_ITEMS", 300)  # not a divisor of any tensor's rows
    merge_adapter(base, adapter, tmp_path / "runs", dtype="float16", task=causal.TASK)
    assert contents(tmp_path / "whole") == contents(tmp_path / "runs")


def test_config_index_and_tokenizer(tmp_path: Path) -> None:
    base_dir = tiny_base(tmp_path / "base", dtype="float32", sharded=True)
    edit_json(base_dir / "config.json", torch_dtype="float32", _name_or_path="/home/someone/model")
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir)
    (adapter_dir / "chat_template.jinja").write_text("{{ 'ours' }}")
    out = tmp_path / "out"

    summary = merge_adapter(base_dir, adapter_dir, out, dtype="bfloat16", task=causal.TASK)

    config = json.loads((out / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert "_name_or_path" not in config
    index, old = (json.loads((d / shards.INDEX).read_text()) for d in (out, base_dir))
    assert index["weight_map"] == old["weight_map"]
    assert index["metadata"]["total_size"] == summary.bytes == old["metadata"]["total_size"] // 2
    assert (out / "generation_config.json").is_file()
    assert not (out / "adapter_config.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == "{{ 'ours' }}"
    assert tokenizer.decode(tokenizer("가격은?").input_ids) == "가격은?"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias: all"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"peft_type": "LOHA"}, "peft_type: LOHA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa"),
        ({"r": 16}, "has rank 8; adapter_config.json says 16"),
        ({"use_dora": True}, "has only"),
    ],
)
def test_adapters_that_a_merge_cannot_express_are_refused(
    changes: dict[str, Any], said: str, base: Path, adapter: Path, tmp_path: Path
) -> None:
    other = copy(adapter, tmp_path / "adapter")
    edit_json(other / "adapter_config.json", **changes)
    with pytest.raises(GateRefused, match=said):
        merge_adapter(base, other, tmp_path / "out", dtype="bfloat16", task=causal.TASK)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("model.layers.1.mlp.up_proj.", "model.layers.7.mlp.up_proj.", "layers.7.mlp.up_proj"),
        ("lora_A.weight", "lora_embedding_A", "lora_embedding_A"),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_B.weight", "base_model.model.lm_head.bias", "lm_head.bias"),
        ("up_proj.lora_B.weight", None, "mlp.up_proj has only"),
        ("model.layers.0.self_attn.q_proj.", "layers.0.mlp.up_proj.", "no separate weight"),
    ],
)
def test_every_adapter_tensor_finds_its_place(
    old: str, new: str | None, said: str, base: Path, adapter: Path, tmp_path: Path
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k if new is None else k.replace(old, new): v for k, v in tensors.items() if new or old not in k}

    other = change_adapter(adapter, tmp_path / "adapter", change)
    with pytest.raises(GateRefused, match=said):
        merge_adapter(base, other, tmp_path / "out", dtype="bfloat16", task=causal.TASK)


@pytest.mark.parametrize("key_present", [True, False])
def test_a_tied_head_is_not_merged(key_present: bool, tmp_path: Path) -> None:
    base_dir = tiny_base(tmp_path / "base", tied=True)
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir, target_modules=["q_proj", "lm_head"])
    if not key_present:
        config = json.loads((base_dir / "config.json").read_text())
        del config["tie_word_embeddings"]
        (base_dir / "config.json").write_text(json.dumps(config))
    with pytest.raises(GateRefused, match="a merge would change both"):
        merge_adapter(base_dir, adapter_dir, tmp_path / "out", dtype="bfloat16", task=causal.TASK)


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), "bfloat16"), (1e5, "float16")])
def test_results_that_are_not_finite_are_refused(value: float, dtype: str, base: Path, tmp_path: Path) -> None:
    for part, name in (("base", "model.norm.weight"), ("adapter", "layers.1.mlp.down_proj.lora_B.weight")):
        base_dir = copy(base, tmp_path / part)
        adapter_dir = tiny_adapter(tmp_path / f"{part}_adapter", base_dir)
        path = {"base": base_dir / "model.safetensors", "adapter": adapter_dir / "adapter_model.safetensors"}[part]
        tensors = load_file(path)
        next(tensor for key, tensor in tensors.items() if key.endswith(name)).view(-1)[3] = value * 1e3
        save_file(tensors, path, metadata={"format": "pt"})
        wanted = name.replace(".lora_B", "")
        with pytest.raises(GateRefused, match=f"{wanted} holds values that are not finite"):
            merge_adapter(base_dir, adapter_dir, tmp_path / "out", dtype=dtype, task=causal.TASK)
        assert not (tmp_path / "out").exists()


def test_bases_that_cannot_be_merged_into(base: Path, adapter: Path, tmp_path: Path) -> None:
    quantised = copy(base, tmp_path / "quantised")
    edit_json(quantised / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    pickled = copy(base, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    cut = copy(base, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-100])
    eight_bit = copy(base, tmp_path / "eight_bit")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, eight_bit / "model.safetensors")
    sharded = tiny_base(tmp_path / "sharded", sharded=True)
    next(sharded.glob("model-00002*")).unlink()
    for folder, said in [
        (quantised, "already quantised \\(bitsandbytes\\)"),
        (pickled, "no safetensors weights"),
        (cut, "cannot be read"),
        (eight_bit, "model.norm.weight is stored as F8_E4M3"),
        (sharded, "model-00002-of-.* cannot be read"),
        (tmp_path, "no config.json"),
    ]:
        with pytest.raises(EnvironmentUnavailable, match=said) as caught:
            merge_adapter(folder, adapter, tmp_path / "out", dtype="bfloat16", task=causal.TASK)
        assert caught.value.hint


def test_a_full_disk_is_seen_before_anything_is_written(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(tensor.nbytes for tensor in load_file(base / "model.safetensors").values())
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - needed + 1, needed - 1)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    with pytest.raises(EnvironmentUnavailable, match=f"merged model: {needed} bytes .* needed, {needed - 1} "):
        merge_adapter(base, adapter, tmp_path / "out", dtype="bfloat16", task=causal.TASK)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_merge_leaves_nothing(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, seen = merge._merged, []

    def interrupted(*arguments: Any) -> torch.Tensor:
        seen.append(arguments)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(merge, "_merged", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merge_adapter(base, adapter, tmp_path / "out", dtype="bfloat16", task=causal.TASK)
    assert not list(tmp_path.iterdir())


def test_a_signal_waits_until_a_block_is_handed_over(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception within leaves a lock of the thread that writes taken, for which the end of the file then waits."""
    write, handed_over = HashedFile.write, []

    def signalled(file: HashedFile, block: bytes | memoryview) -> None:
        if len(handed_over) < 2:
            os.kill(os.getpid(), signal.SIGTERM)
        write(file, block)
        handed_over.append(len(block))

    monkeypatch.setattr(HashedFile, "write", signalled)
    before = signal.signal(signal.SIGTERM, signals.handle)
    try:
        with pytest.raises(Interrupted):
            merge_adapter(base, adapter, tmp_path / "out", dtype="bfloat16", task=causal.TASK)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(handed_over) == 1  # the next tensor is not begun
    assert not list(tmp_path.iterdir())


def test_the_trainers_matmul_precision_does_not_matter(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge_adapter(base, adapter, tmp_path / "highest", dtype="float16", task=causal.TASK)
    torch.set_float32_matmul_precision("medium")
    try:
        merge_adapter(base, adapter, tmp_path / "medium", dtype="float16", task=causal.TASK)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert contents(tmp_path / "highest") == contents(tmp_path / "medium")


CHILD = """
import sys
from pathlib import Path
import torch, safetensors
from appliance.tasks import causal
from appliance.weights.merge import merge_adapter

def memory(field):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field))
    return int(line.split()[1]) // 1024

base_dir, adapter_dir, out_dir = map(Path, sys.argv[1:])
merge_adapter(  # loads the code that it needs
    base_dir, adapter_dir, out_dir.with_name("first"), dtype="bfloat16", task=causal.TASK
)
Path("/proc/self/clear_refs").write_text("5")  # resets the peak (proc(5))
before = memory("VmRSS")
merge_adapter(base_dir, adapter_dir, out_dir, dtype="bfloat16", task=causal.TASK)
print(memory("VmHWM") - before)
"""


def test_memory_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    """A shard of 200 MB: 12 bfloat16 weights of 4 MiB (8 in float32, which the sum needs) and a float32 embedding."""
    base_dir, adapter_dir = tmp_path / "base", tmp_path / "adapter"
    base_dir.mkdir()
    adapter_dir.mkdir()
    modules = [f"model.layers.{i}.mlp.up_proj" for i in range(12)]
    tensors = {f"{module}.weight": torch.zeros(2048, 1024, dtype=torch.bfloat16) for module in modules}
    tensors["model.embed_tokens.weight"] = torch.ones(36 * 1024, 1024)
    save_file(tensors, base_dir / "model.safetensors")
    (base_dir / "config.json").write_text('{"tie_word_embeddings": true}')
    parts = {"A": torch.ones(8, 1024), "B": torch.ones(2048, 8)}
    lora = {f"base_model.model.{m}.lora_{k}.weight": part.clone() for m in modules for k, part in parts.items()}
    save_file(lora, adapter_dir / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "init_lora_weights": True}
    (adapter_dir / "adapter_config.json").write_text(json.dumps(settings))
    assert (base_dir / "model.safetensors").stat().st_size > 190 * 2**20

    command = [sys.executable, "-c", CHILD, *map(str, (base_dir, adapter_dir, tmp_path / "out"))]
    grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert int(grown) < 64, f"{grown} MiB"
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as handle:
        assert handle.get_tensor("model.layers.11.mlp.up_proj.weight").unique().tolist() == [16.0]  # 16 / 8 * 8
