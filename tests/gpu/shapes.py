"""Bases, rows, recipes and child processes of the GPU tests. Every size is a parameter: small ones run on a CPU too.

A base's type: its config.json. Weights are random; tensors have the names that transformers' Llama and Qwen3 give them.
"""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from appliance.process import files
from appliance.prompt import batch as prompt_batch
from appliance.prompt import format as prompt_format
from appliance.rows import csv_file
from appliance.training import row_order
from tests.helpers.engine_child import Request
from tests.helpers.models import alpaca_tokenizer

ROOT = Path(__file__).parents[2]  # children find `appliance` and `tests` there
# meta-llama/Llama-3.2-1B, config.json; without its rope_scaling, which only matters beyond 8192 positions
LLAMA_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
}
# meta-llama/Meta-Llama-3-8B, config.json
LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
}
# Qwen/Qwen3-4B-Instruct-2507, config.json
QWEN3_4B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "tie_word_embeddings": True,
    "rope_theta": 5000000.0,
    "rms_norm_eps": 1e-6,
}
# Qwen/Qwen3-0.6B, config.json
QWEN3_06B = QWEN3_4B | {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
}
# Of the same families, so small that any card runs them in seconds, and smaller still for Triton's interpreter.
SMALL = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "vocab_size": 4096} | {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 512} | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
INIT_STD = 0.02  # both families' initializer_range
SHARD_BYTES = 4 << 30


@dataclass(frozen=True)
class Setting:
    """What is trained, and how. `pretend_cuda`: Unsloth runs on a CPU (tests/helpers/unsloth_on_cpu.py)."""

    base: Path
    csv: Path
    dtype: str = "bfloat16"
    load_in_4bit: bool = False
    steps: int = 30
    micro_batch_size: int = 2
    gradient_accumulation_steps: int = 4
    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    learning_rate: float = 2e-4
    warmup_steps: int = 5
    weight_decay: float = 0.01
    scheduler: str = "cosine"
    optimizer: str = "adamw_8bit"
    eval_every: int = 1000
    max_new_tokens: int = 8
    seed: int = 123
    pretend_cuda: bool = False

    def write_recipe(self, path: Path) -> Path:
        """JSON, which YAML reads as well."""
        train = (
            *("micro_batch_size", "gradient_accumulation_steps", "learning_rate", "warmup_steps", "weight_decay"),
            *("scheduler", "optimizer", "eval_every", "seed"),
        )
        recipe = {
            "name": "run",
            "rehearse": "never",  # only the training is measured
            "model": {"id": str(self.base), "load_in_4bit": self.load_in_4bit, "dtype": self.dtype},
            "data": {"csv": str(self.csv)},
            "tuning": {"r": self.r, "alpha": self.alpha, "dropout": self.dropout},
            "train": {"max_steps": self.steps} | {name: getattr(self, name) for name in train},
            "evaluate": {"max_new_tokens": self.max_new_tokens},
        }
        path.write_text(json.dumps(recipe), encoding="utf-8")
        return path


def llama_1b(folder: Path, *, seed: int = 0, **smaller: Any) -> Path:
    """A Llama of the 1B shape with random weights in bfloat16, and a tokenizer that uses few of its ids."""
    torch.manual_seed(seed)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA_1B | ids | smaller), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    alpaca_tokenizer().save_pretrained(folder)
    return folder


def random_base(folder: Path, config: dict[str, Any], tokenizer: Any, *, device: str, seed: int = 0) -> Path:
    """A base of this config with random weights in bfloat16, made on `device` and written shard by shard.

    Without transformers' model classes, which Unsloth may have rewritten. Raises ValueError: the tokenizer has more ids
    than the config has rows.
    """
    if len(tokenizer) > config["vocab_size"]:
        raise ValueError(f"the tokenizer has {len(tokenizer)} ids, the config has room for {config['vocab_size']}")
    folder.mkdir(parents=True, exist_ok=True)  # an interrupted one has no config.json
    generator = torch.Generator(device).manual_seed(seed)
    shard: dict[str, torch.Tensor] = {}
    weight_map: dict[str, str] = {}
    size = written = 0

    def flush() -> None:
        nonlocal size, shard
        name = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
        size, shard = 0, {}

    for name, shape in _tensors(config):
        tensor = torch.ones(shape, dtype=torch.bfloat16, device=device)  # norms
        if len(shape) > 1:
            tensor.normal_(0, INIT_STD, generator=generator)
        shard[name] = tensor.cpu()
        size, written = size + tensor.nbytes, written + tensor.nbytes
        if size >= SHARD_BYTES:
            flush()
    flush()
    index = {"metadata": {"total_size": written}, "weight_map": weight_map}
    files.write_json(folder / "model.safetensors.index.json", index)
    tokenizer.save_pretrained(folder)
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    files.write_json(folder / "config.json", config | ids | {"dtype": "bfloat16", "hidden_act": "silu"})
    return folder


def _tensors(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every weight (transformers 5.17, models/llama/modeling_llama.py, models/qwen3)."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    query, key_value = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        yield f"{block}.self_attn.q_proj.weight", (query, hidden)
        yield f"{block}.self_attn.k_proj.weight", (key_value, hidden)
        yield f"{block}.self_attn.v_proj.weight", (key_value, hidden)
        yield f"{block}.self_attn.o_proj.weight", (hidden, query)
        if config["model_type"] == "qwen3":
            yield f"{block}.self_attn.q_norm.weight", (head,)
            yield f"{block}.self_attn.k_norm.weight", (head,)
        yield f"{block}.mlp.gate_proj.weight", (wide, hidden)
        yield f"{block}.mlp.up_proj.weight", (wide, hidden)
        yield f"{block}.mlp.down_proj.weight", (hidden, wide)
        yield f"{block}.input_layernorm.weight", (hidden,)
        yield f"{block}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


def tokenizer_of(folder: Path | None) -> Any:
    """A real tokenizer from its folder, or the tests' own."""
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True) if folder else alpaca_tokenizer()


def write_rows(
    path: Path, count: int, *, shortest: int, longest: int, seed: int = 0, tokenizer: Any = None, between: str = ""
) -> Path:
    """Questions and answers of `shortest` to `longest` tokens in all, prompt text and EOS included.

    Capital letters: the tests' tokenizer has no pair of them, so each is one token. For another tokenizer put a
    blank `between` the letters: with it each is one token in those that were learnt from text.
    """
    tokenizer = tokenizer or alpaca_tokenizer()
    prompt = prompt_format.from_transformers("alpaca", tokenizer)
    frame = len(prompt.encode("", "", ""))
    tokens = len(tokenizer.encode(f"{between}A" * 64, add_special_tokens=False)) / 64  # of one letter
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("instruction", "output"))
        for _ in range(count):
            letters = rng.choices("ABCDEFGH", k=int((rng.randint(shortest, longest) - frame) / tokens))
            third = len(letters) // 3
            writer.writerow(between.join(part) for part in (letters[:third], letters[third:]))
    return path


def encoded_rows(setting: Setting, run: Path) -> list[prompt_format.Encoded]:
    """The train rows of a run, encoded here."""
    prompt = prompt_format.from_folder("alpaca", setting.base)
    rows = csv_file.read_canonical(run / "prepare" / "train.csv")
    return [prompt.encode(row.instruction, row.input, row.output) for row in rows]


def micro_batches(setting: Setting, rows: list[prompt_format.Encoded]) -> Iterator[list[dict[str, list[int]]]]:
    """The rows of each forward pass, in order and without end, as our training must deliver them."""
    rows_per_step = setting.micro_batch_size * setting.gradient_accumulation_steps
    sampler = row_order.EpochSampler([len(row) for row in rows], rows_per_step=rows_per_step, seed=setting.seed)
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        drawn = [{"input_ids": rows[i].input_ids, "labels": rows[i].labels} for i in sampler]
        for start in range(0, len(drawn), setting.micro_batch_size):
            yield drawn[start : start + setting.micro_batch_size]
        epoch += 1


def wanted_batches(setting: Setting, run: Path, count: int) -> list[dict[str, Any]]:
    """What the model must have received in its first `count` forward passes."""
    pad = prompt_format.from_folder("alpaca", setting.base).pad_token_id
    passes = micro_batches(setting, encoded_rows(setting, run))
    collated = [prompt_batch.collate(next(passes), pad_token_id=pad) for _ in range(count)]
    return [{name: tensor.tolist() for name, tensor in batch.items()} for batch in collated]


def run_engine(
    setting: Setting, engine: str, run: Path, *, until: str = "publish", name: str = "", **request: Any
) -> tuple[dict[str, Any], str]:
    """(report, stdout) of tests/helpers/engine_child.py; `run` is the run directory, and what is noted lies next to
    it."""
    beside = run.parent / (name or run.name)
    wanted = Request(
        engine=engine,
        recipe=str(setting.write_recipe(run.parent / "recipe.yaml")),
        run=str(run),
        cache=str(run.parent / "cache"),
        report=f"{beside}.report.json",
        pretend_cuda=setting.pretend_cuda and engine == "unsloth",
        until=until,
        **request,
    )
    return run_child("tests.helpers.engine_child", asdict(wanted), Path(f"{beside}.request.json"))


def run_bare(setting: Setting, run: Path, folder: Path, *, in_process: bool = False) -> dict[str, Any]:
    """What tests/gpu/bare.py saw: the same rows in the same order as the finished training in `run`.

    `in_process`: in this one, where Unsloth is already imported; time and memory mean nothing then.
    """
    folder.mkdir()
    passes = micro_batches(setting, encoded_rows(setting, run))
    count = setting.steps * setting.gradient_accumulation_steps
    request = asdict(setting) | {
        "base": str(setting.base),
        "csv": "",
        "rows": [row for _ in range(count) for row in next(passes)],
        "pad_token_id": prompt_format.from_folder("alpaca", setting.base).pad_token_id,
        "max_seq_length": files.read_json(run / "prepare" / "summary.json")["max_seq_length"],
        "folder": str(folder),
        "report": str(folder / "report.json"),
    }
    if in_process:
        from tests.gpu import bare

        bare.main(request)
        return dict(files.read_json(Path(request["report"])))
    return run_child("tests.gpu.bare", request, folder / "request.json")[0]


def run_child(module: str, request: dict[str, Any], path: Path) -> tuple[dict[str, Any], str]:
    """(report, stdout) of a module of ours in a process of its own, which reads `path` and writes request["report"]."""
    path.write_text(json.dumps(request), encoding="utf-8")
    command = [sys.executable, "-m", module, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return json.loads(Path(request["report"]).read_text(encoding="utf-8")), done.stdout
