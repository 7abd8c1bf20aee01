"""`python -m benchmarks.peers.vocabulary`: the head of a large vocabulary, as the full one, as trl's loss and as ours.

One micro batch of a model with Gemma 3 270M's shape (a vocabulary of 262,144, random weights), LoRA on all linear
layers, forward and backward, one thread. The three take turns on the same model and the same rows.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import trl.trainer.sft_trainer as trl_trainer
from peft import LoraConfig, get_peft_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from appliance.prompt.batch import IGNORED
from appliance.training import answer_loss

ROWS, PROMPT_TOKENS, ANSWER_TOKENS, REPEATS = 2, 58, 64, 3


def main() -> None:
    torch.set_num_threads(1)
    model, batch = _model(), _batch()
    ours = answer_loss.choose(model, "float32")
    assert ours.answers_only
    causal = model.get_base_model()
    full = causal.forward
    trl_trainer._patch_chunked_ce_lm_head(causal, trl_trainer._CHUNKED_LM_HEAD_CHUNK_SIZE)
    chunked = causal.forward

    def ours_step() -> float:
        with ours.in_use():
            return _step(model, batch)

    kinds: dict[str, tuple[Any, Callable[[], float]]] = {
        "full head": (full, lambda: _step(model, batch)),
        "trl's chunked loss": (chunked, lambda: _step(model, batch)),
        "ours": (chunked, ours_step),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    losses = {}
    for _ in range(REPEATS):
        for name, (forward, step) in kinds.items():
            causal.forward = forward
            began = time.process_time()
            losses[name] = step()
            seconds[name].append(time.process_time() - began)
    sys.stdout.write("| head | real tokens a CPU second (range) | loss |\n|---|---|---|\n")
    tokens = ROWS * (PROMPT_TOKENS + ANSWER_TOKENS)
    for name, taken in seconds.items():
        rates = f"{tokens / statistics.median(taken):.1f} ({tokens / max(taken):.1f}-{tokens / min(taken):.1f})"
        sys.stdout.write(f"| {name} | {rates} | {losses[name]:.6f} |\n")


def _step(model: Any, batch: dict[str, torch.Tensor]) -> float:
    loss = model(**batch, num_items_in_batch=ROWS * ANSWER_TOKENS).loss
    loss.backward()
    model.zero_grad()
    return float(loss.detach())


def _batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 262_144, (ROWS, PROMPT_TOKENS + ANSWER_TOKENS), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :PROMPT_TOKENS] = IGNORED
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _model() -> Any:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        tie_word_embeddings=True,
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(Gemma3ForCausalLM(config), lora).train()


if __name__ == "__main__":
    main()
