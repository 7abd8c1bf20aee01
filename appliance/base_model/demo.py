"""The embedded default: a small Korean base model made on the spot, and the CSV that the demo tunes it on.

Owns the base's tokenizer, shape and pretraining. Must not know recipes, stages or run directories: the result is an
ordinary Hugging Face folder, and nothing after it can tell that it was not downloaded.

    base_dir = ensure_base(Path("cache"))  # minutes the first time, nothing the second
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, processors, trainers

from appliance.base_model import demo_corpus
from appliance.errors import EnvironmentUnavailable
from appliance.process import child, files, imports, known_secrets
from appliance.prompt import batch as prompt_batch
from appliance.prompt import format as prompt_format

if TYPE_CHECKING:
    import torch

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"  # ids 0, 1, 2

_VERSION = 1  # raise it when the code below makes a different model from the same constants
_FORMAT = "alpaca"
_CONTEXT_TOKENS = 2048
_SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
}
_STEPS = 350
_BATCH_ROWS = 24
_WARMUP_STEPS = 30
_PEAK_LEARNING_RATE = 3e-3
_EMBEDDING_LEARNING_RATE = 5e-4
_EMBEDDING_SPREAD = 0.1  # standard deviation at the start
_REPORT_EVERY = 50  # steps
CORPUS_ROWS = _STEPS * _BATCH_ROWS

_CARD = """---
license: apache-2.0
language: ko
---

# A small Korean base model for the demo

Made on this machine by `appliance/base_model/demo.py` (seed {seed}), pretrained for a minute on invented questions and
answers in the Alpaca format. It knows the shape of an answer but no facts: good for showing that fine-tuning works,
and for nothing else.
"""


def ensure_base(
    cache_dir: Path, *, seed: int = 0, on_progress: Callable[[str], None] = lambda _line: None, steps: int = _STEPS
) -> Path:
    """The folder of the demo's base model below `cache_dir`, made there unless it exists.

    The same seed gives the same weights on one machine. The folder appears whole or not at all: it is made under
    another name and renamed. `steps` is for tests.
    """
    base_dir = _base_dir(cache_dir, seed, steps)
    if base_dir.is_dir():
        return base_dir
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{base_dir.name}.", dir=cache_dir) as parent:
        unfinished_dir = Path(parent) / "base"
        _write_base(unfinished_dir, seed, steps, on_progress)
        try:
            unfinished_dir.replace(base_dir)
        except OSError:
            if not base_dir.is_dir():
                raise
            # Another process was faster; its result is the same.
    return base_dir


def ensure_base_apart(cache_dir: Path, *, on_progress: Callable[[str], None]) -> Path:
    """As ensure_base, in a process of its own: Unsloth must be imported before transformers, which makes the base.

    Raises EnvironmentUnavailable: that process failed; its own message is on stderr.
    """
    base_dir = _base_dir(cache_dir, seed=0, steps=_STEPS)
    if base_dir.is_dir():
        return base_dir
    command = [sys.executable, "-m", "appliance.base_model.demo", str(cache_dir)]
    environ = {**known_secrets.without(os.environ, addresses=True), **child.of_this_process()}
    with child.running(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environ) as process:
        assert process.stdout
        for line in process.stdout:
            on_progress(line.rstrip("\n"))
        process.wait()
    if process.returncode or not base_dir.is_dir():
        raise EnvironmentUnavailable(
            f"the demo's base model was not made: its process ended with {process.returncode}",
            hint="run the same command again; -9 (SIGKILL) usually means that the system ran out of memory",
        )
    return base_dir


def _base_dir(cache_dir: Path, seed: int, steps: int) -> Path:
    """Named after everything that it is made of."""
    rates = [_PEAK_LEARNING_RATE, _EMBEDDING_LEARNING_RATE, _EMBEDDING_SPREAD]
    corpus = [repr(pair) for pair in demo_corpus.pairs(200, seed)]  # enough to notice a changed generator
    made_of = json.dumps(
        [_VERSION, seed, steps, _SHAPE, _BATCH_ROWS, rates, prompt_format.chat_template(_FORMAT), corpus]
    )
    return cache_dir / f"demo-base-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"


def build_tokenizer() -> Tokenizer:
    """One token per Hangul syllable and per fixed stretch of the prompt format; UTF-8 bytes for everything rarer.

    Whole syllables keep a name in one piece, so that copying it takes one step per syllable; with the format's fixed
    English text as a few tokens, rows are half as long. Every text comes back exactly: nothing is normalised or split.
    """
    learner = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=100_000, min_frequency=1, show_progress=False)
    learner.train_from_iterator(_fixed_prompt_texts(), trainer)
    learnt = json.loads(learner.to_str())["model"]
    ascii_text, jamo = "\n" + "".join(map(chr, range(0x20, 0x7F))), "".join(map(chr, range(0x3131, 0x3164)))
    tokens = [PAD, BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256)), *ascii_text, *jamo, *"·…“”‘’"]
    tokens += [*demo_corpus.SYLLABLES, *learnt["vocab"]]
    ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    merges = [(left, right) for left, right in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, BOS, EOS)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, ids[BOS])]
    )
    return tokenizer


def _fixed_prompt_texts() -> list[str]:
    """What the format writes around a row's cells, with and without input."""
    blank = "\0"
    template = prompt_format.chat_template(_FORMAT)
    rendered = [prompt_format.render(template, prompt_format.user_message(blank, more)) for more in ("", blank)]
    return [part for text in rendered for part in text.split(blank) if part]


def _write_base(folder: Path, seed: int, steps: int, on_progress: Callable[[str], None]) -> None:
    with imports.uncollected("torch"):
        import torch
        from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    on_progress("making the demo's base model (only once; takes a minute or two)")
    tokenizer = build_tokenizer()
    model = _pretrain(tokenizer, seed, steps, on_progress)
    # 16 bits, as published models come and as the merged model will be written.
    with _no_progress_bar():
        model.to(torch.bfloat16).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=_CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    (folder / "README.md").write_text(_CARD.format(seed=seed), encoding="utf-8")
    files.fsync_all(folder)


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers would draw a bar for the one shard that is written."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _pretrain(tokenizer: Tokenizer, seed: int, steps: int, on_progress: Callable[[str], None]) -> Any:
    """A LlamaForCausalLM of about 2 M parameters, trained on the answers of invented rows."""
    import torch
    from torch.nn.functional import cross_entropy

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _new_model(tokenizer)
        # Adam moves a rarely seen syllable by a full step, however small its gradient, and all of them the same way:
        # soon they are one vector, and names cannot be told apart. So they start far apart and move slowly.
        embedding = model.get_input_embeddings().weight
        torch.nn.init.normal_(embedding, std=_EMBEDDING_SPREAD)
        others = [parameter for parameter in model.parameters() if parameter is not embedding]
        groups: list[dict[str, Any]] = [
            {"params": [embedding], "lr": _EMBEDDING_LEARNING_RATE},
            {"params": others},
        ]
        optimizer = torch.optim.AdamW(
            groups,
            lr=_PEAK_LEARNING_RATE,
            betas=(0.9, 0.95),
            weight_decay=0.01,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
        for step, (input_ids, labels) in enumerate(_batches(tokenizer, seed, steps), start=1):
            # Padding is on the right and attention is causal: no mask is needed. (B, T) ids, (B, T-1, H) states.
            states = model.model(input_ids=input_ids).last_hidden_state[:, :-1]
            trained = labels[:, 1:] != prompt_batch.IGNORED
            # The vocabulary is a quarter of the work: only states that are trained go through it.
            loss = cross_entropy(model.lm_head(states[trained]), labels[:, 1:][trained])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % _REPORT_EVERY == 0 or step == steps:
                on_progress(f"base model: step {step} of {steps}, loss {loss.item():.2f}")
    return model.eval()


def _new_model(tokenizer: Tokenizer) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **_SHAPE,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=_CONTEXT_TOKENS,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.token_to_id(PAD),
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
    )
    return LlamaForCausalLM(config).train()


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    if step < _WARMUP_STEPS:
        return (step + 1) / _WARMUP_STEPS
    done = (step - _WARMUP_STEPS) / max(1, steps - _WARMUP_STEPS)
    return 0.02 + 0.49 * (1 + math.cos(math.pi * done))


def _batches(tokenizer: Tokenizer, seed: int, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`steps` batches of (input_ids, labels), each of rows of similar length, padded on the right: (B, T) int64."""
    import torch

    prompt = prompt_format.bind(_FORMAT, tokenizer, BOS, EOS, PAD)
    pairs = demo_corpus.pairs(steps * _BATCH_ROWS, seed)
    encoded = [prompt.encode(pair.instruction, pair.input, pair.output) for pair in pairs]
    encoded.sort(key=len)
    batches = [encoded[i : i + _BATCH_ROWS] for i in range(0, len(encoded), _BATCH_ROWS)]
    random.Random(seed).shuffle(batches)
    for batch in batches:
        longest = max(map(len, batch))
        ids = [row.input_ids + [prompt.pad_token_id] * (longest - len(row)) for row in batch]
        labels = [row.labels + [prompt_batch.IGNORED] * (longest - len(row)) for row in batch]
        yield torch.tensor(ids), torch.tensor(labels)


if __name__ == "__main__":
    child.die_with_parent()
    child.leave_out(*child.UNUSED)
    ensure_base(Path(sys.argv[1]), on_progress=partial(print, flush=True))
