"""Our loss in the place of trl's: the same figures from the trained tokens alone, and trl's where ours does not fit."""

from __future__ import annotations

import inspect
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
import trl.trainer.sft_trainer as trl_trainer
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
)

from appliance.base_model.base import Base
from appliance.engines import answer_head, token_rows
from appliance.training import answer_loss, lean_steps
from tests.engines.test_summed_loss import SIZES, OwnHead, batch
from tests.training.test_train import base, fit, losses, prepare_dir

__all__ = ["base", "prepare_dir"]  # fixtures

LLAMA = LlamaConfig(**SIZES)
OWN = LlamaConfig(**SIZES)  # for OwnHead
GPT2 = GPT2Config(vocab_size=320, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
ATEN = torch.ops.aten
THEIRS = trl_trainer._chunked_cross_entropy_loss


def model_of(config: Any, *, lora: bool = True, tokens: tuple[int, ...] = ()) -> Any:
    torch.manual_seed(0)
    model = OwnHead(config) if config is OWN else AutoModelForCausalLM.from_config(config)
    if not lora:
        return model
    config = LoraConfig(
        r=2,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        trainable_token_indices=token_rows.indices(model, tokens),
    )
    return token_rows.complete(get_peft_model(model, config), trains=True)


def test_trl_is_the_one_that_was_read() -> None:
    """If this fails, trl was updated: read what its trainer does with the function, and whether ours still fits."""
    assert trl.__version__.startswith(answer_loss.KNOWN_TRL)
    ours = list(inspect.signature(answer_loss._of_answers).parameters.values())[1:]
    theirs = list(inspect.signature(THEIRS).parameters.values())
    assert [(one.name, one.default) for one in ours] == [(one.name, one.default) for one in theirs]


@pytest.mark.parametrize("items", [None, torch.tensor(91), 91])
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 300)])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_loss_gradient_and_counts_are_trls(items: Any, bias: torch.Tensor | None, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 40, 64, generator=generator).requires_grad_()
    weight = torch.randn(300, 64, generator=generator) / 4
    rest = {"labels": batch()["labels"], "num_items_in_batch": items, "lm_head_bias": bias}
    loss, correct, _, count = answer_loss._of_answers(scale, hidden, weight, 256, **rest)
    wanted, *wanted_counts = THEIRS(hidden, weight, 256, logit_scale=scale, **rest)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(one, hidden)[0] for one in (loss, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6 * float(gradients[1].abs().max()))
    assert (correct, count) == (wanted_counts[0], wanted_counts[2])


@pytest.mark.parametrize(
    ("model", "dtype", "expected", "why"),
    [
        (lambda: model_of(LLAMA), "float32", ("chunked_nll", True), "only the trained tokens"),
        (lambda: model_of(LLAMA), "bfloat16", ("chunked_nll", True), "only the trained tokens"),
        (lambda: model_of(GraniteConfig(**SIZES)), "float32", ("chunked_nll", True), "only the trained tokens"),
        (lambda: model_of(GPT2), "float32", ("chunked_nll", True), "only the trained tokens"),
        (
            lambda: model_of(LLAMA, lora=False),
            "float32",
            ("chunked_nll", False),
            "the head, or rows of it, are trained",
        ),
        (lambda: model_of(LLAMA, tokens=(2,)), "float32", ("chunked_nll", False), "rows of it, are trained"),
        (lambda: model_of(Gemma2Config(**SIZES, head_dim=16)), "float32", ("chunked_nll", False), "soft-capped"),
        (lambda: model_of(LLAMA), "float16", ("chunked_nll", False), "float16"),
        (lambda: model_of(OWN), "float32", ("nll", False), "the logits are not those of the head"),
    ],
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # peft notices Conv1D by itself
def test_which_loss_is_chosen(
    model: Any, dtype: str, expected: tuple[str, bool], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="appliance"):
        chosen = answer_loss.choose(model(), dtype)
    assert (chosen.trl_type, chosen.answers_only) == expected
    assert [why in record.getMessage() for record in caplog.records] == [True]


def test_another_trl_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl, "__version__", "1.16.0")
    assert answer_loss.choose(model_of(LLAMA), "float32") == answer_loss.Loss("chunked_nll")
    assert answer_loss.choose(model_of(GraniteConfig(**SIZES, logits_scaling=3.0)), "float32").trl_type == "nll"


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        CohereConfig(**SIZES, logit_scale=0.25),
        GraniteConfig(**SIZES, logits_scaling=3.0),  # trl reads the scale of neither this
        HyperCLOVAXConfig(**SIZES, logits_scaling=3.0),  # nor that
        Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=2.0),
    ],
)
def test_it_is_the_models_own_loss(config: Any, lora: bool) -> None:
    model, rows = model_of(config, lora=lora), batch()
    own = model(**rows, num_items_in_batch=91).loss
    wanted = torch.autograd.grad(own, [weight for weight in model.parameters() if weight.requires_grad])
    chosen = answer_loss.choose(model, "float32")
    trl_trainer._patch_chunked_ce_lm_head(model.get_base_model() if lora else model, 256)
    with chosen.in_use():
        loss = model(**rows, num_items_in_batch=91).loss
    assert trl_trainer._chunked_cross_entropy_loss is THEIRS
    seen = torch.autograd.grad(loss, [weight for weight in model.parameters() if weight.requires_grad])
    torch.testing.assert_close(loss, own, rtol=1e-6, atol=0)
    largest = max(float(gradient.abs().max()) for gradient in wanted)
    torch.testing.assert_close(seen, wanted, rtol=1e-5, atol=1e-6 * largest)


class Waits(TorchDispatchMode):
    """Counts what makes a process wait for a GPU: a number taken from a tensor, and how many places hold True."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        indices = args[1] if func.overloadpacket in (ATEN.index, ATEN.index_put, ATEN._index_put_impl_) else ()
        by_mask = any(one is not None and one.dtype == torch.bool for one in indices)
        self.count += by_mask or func.overloadpacket in (ATEN._local_scalar_dense, ATEN.nonzero, ATEN.is_nonzero)
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
def test_a_micro_batch_waits_twice_for_the_device_and_trls_figures_are_logged_all_the_same(
    base: Base, prepare_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To learn whether a row is padded (transformers asks) and which tokens are trained.

    If trl computes other figures, the logs differ.
    """
    counts: list[int] = []
    training_step = lean_steps.LeanTrainer.training_step

    def watched(*args: Any, **kwargs: Any) -> Any:
        with Waits() as waits:
            loss = training_step(*args, **kwargs)
        counts.append(waits.count)
        return loss

    monkeypatch.setattr(lean_steps.LeanTrainer, "training_step", watched)
    short = {"max_steps": 3, "eval_every": 3, "micro_batch_size": 2, "gradient_accumulation_steps": 2}
    histories = []
    for keeps in (True, False):
        monkeypatch.setattr(answer_loss.LossTrainer, "_keeps_figures", keeps)
        fit(base, prepare_dir, tmp_path / str(keeps), **short)
        state = next((tmp_path / str(keeps)).glob("checkpoints/*/trainer_state.json"))
        histories.append(json.loads(state.read_text(encoding="utf-8"))["log_history"])
    assert (counts[:6], counts[6:]) == ([2] * 6, [2 + 5] * 6)
    for line in (*histories[0], *histories[1]):
        line.pop("eval_runtime", None)
    assert histories[0] == histories[1]
    assert {"loss", "mean_token_accuracy", "num_tokens"} <= set(histories[0][-2])
    assert "eval_mean_token_accuracy" in histories[0][-1]


def test_figures_of_another_trl_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer: Any = SimpleNamespace(loss=answer_loss.Loss("chunked_nll"), aux_loss_enabled=False)
    trainer.args = SimpleNamespace(loss_type="chunked_nll", use_liger_kernel=False)
    keeps = answer_loss.LossTrainer._keeps_figures.fget
    assert keeps is not None
    assert keeps(trainer)
    for change in ({"loss": answer_loss.LIBRARYS}, {"loss": answer_loss.Loss("nll")}, {"aux_loss_enabled": True}):
        assert not keeps(SimpleNamespace(**vars(trainer) | change)), change
    monkeypatch.setattr(trl, "__version__", "1.15.0")
    assert not keeps(trainer)


@pytest.mark.slow
def test_a_training_computes_the_trained_tokens_alone_and_learns_the_same(
    base: Base, prepare_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    summed_loss = answer_head.summed_loss

    def watched(hidden: torch.Tensor, weight: Any, bias: Any, labels: torch.Tensor) -> Any:
        assert len(hidden) == len(labels)
        seen.append(labels)
        return summed_loss(hidden, weight, bias, labels)

    short = {"max_steps": 3, "eval_every": 3, "micro_batch_size": 2, "gradient_accumulation_steps": 2}
    monkeypatch.setattr(answer_head, "summed_loss", watched)
    fit(base, prepare_dir, tmp_path / "ours", **short)
    assert len(seen) > 3 * 2  # every micro batch, and the evaluations
    assert all((labels >= 0).all() for labels in seen)
    assert all(0 < len(labels) < 256 for labels in seen)
    assert trl_trainer._chunked_cross_entropy_loss is THEIRS
    monkeypatch.setattr(answer_loss, "choose", lambda *_: answer_loss.Loss("chunked_nll"))
    fit(base, prepare_dir, tmp_path / "trl", **short)
    for key in ("loss", "grad_norm", "val_loss"):
        ours, theirs = (losses(tmp_path / who, key) for who in ("ours", "trl"))
        assert ours == pytest.approx(theirs, rel=1e-5)
