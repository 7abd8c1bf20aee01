"""The head on the trained tokens alone: loss and gradient of the full head, from no more logits than allowed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, HyperCLOVAXConfig, LlamaConfig

from appliance.engines import answer_head
from appliance.engines.answer_head import AfterHead, after_head, summed_loss
from tests.engines.test_summed_loss import SIZES

TOKENS, HIDDEN, VOCABULARY = 37, 64, 1000


@pytest.fixture(autouse=True)
def parts_of_eight_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_head, "HEAD_TOKENS", 8)


def inputs(*, bias: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    labels = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    hidden = normal(TOKENS, HIDDEN).requires_grad_()
    return hidden, normal(VOCABULARY, HIDDEN) / 4, normal(VOCABULARY) if bias else None, labels


def of_all_logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
) -> torch.Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")


@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradient_are_those_of_all_logits(bias: bool) -> None:
    hidden, weight, offset, labels = inputs(bias=bias)
    wanted = of_all_logits(hidden, weight, offset, labels)
    (wanted_gradient,) = torch.autograd.grad(wanted / 91, hidden)
    loss, correct = summed_loss(hidden, weight, offset, labels)
    (gradient,) = torch.autograd.grad(loss / 91, hidden)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-5, atol=1e-6 * float(wanted_gradient.abs().max()))
    best = torch.nn.functional.linear(hidden, weight, offset).argmax(1)
    assert int(correct) == int((best == labels).sum())


def test_a_confident_head_keeps_its_small_gradient_in_16_bits() -> None:
    """Were the probability rounded before one is subtracted, nothing would be left of a gradient of 1e-3."""
    hidden, weight, _, labels = inputs()
    with torch.no_grad():
        hidden += weight[labels] * (18 / weight[labels].norm(dim=1, keepdim=True) ** 2 - 0.2)
    half, half_weight = hidden.detach().bfloat16().requires_grad_(), weight.bfloat16()
    exact = half.detach().float().requires_grad_()
    (wanted,) = torch.autograd.grad(of_all_logits(exact, half_weight.float(), None, labels), exact)
    (gradient,) = torch.autograd.grad(summed_loss(half, half_weight, None, labels)[0], half)
    (full,) = torch.autograd.grad(of_all_logits(half, half_weight, None, labels), half)
    error, allowed = (gradient.float() - wanted).norm(), (full.float() - wanted).norm()
    assert float(wanted.norm(dim=1).median()) < 0.5  # confident
    assert error <= 1.2 * allowed


def test_autocast_computes_in_16_bits() -> None:
    hidden, weight, _, labels = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = summed_loss(hidden, weight, None, labels)
        wanted = of_all_logits(hidden, weight, None, labels)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    assert not torch.equal(loss, summed_loss(hidden, weight, None, labels)[0])
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient.dtype == torch.float32


def test_without_a_trained_token_the_loss_is_zero_and_so_is_the_gradient() -> None:
    hidden, weight, _, labels = inputs()
    loss, correct = summed_loss(hidden[:0], weight, None, labels[:0])
    loss.backward()
    assert (loss.item(), correct.item()) == (0, 0)
    assert hidden.grad is not None
    assert not hidden.grad.any()


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest result of any operation."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.is_tensor(result) and result.data_ptr() not in {t.data_ptr() for t in args if torch.is_tensor(t)}:
            self.elements = max(self.elements, result.numel())
        return result


def test_no_more_logits_are_held_than_of_one_part() -> None:
    hidden, weight, _, labels = inputs()
    with LargestTensor() as largest:
        summed_loss(hidden, weight, None, labels)[0].backward()
    assert largest.elements == 8 * VOCABULARY
    with LargestTensor() as largest:
        of_all_logits(hidden, weight, None, labels).backward()
    assert largest.elements == TOKENS * VOCABULARY


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(**SIZES), AfterHead()),
        (CohereConfig(**SIZES, logit_scale=0.25), AfterHead(0.25)),
        (GraniteConfig(**SIZES, logits_scaling=8.0), AfterHead(1 / 8)),
        (HyperCLOVAXConfig(**SIZES, logits_scaling=8.0), AfterHead(8.0)),
        (Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=2.0), AfterHead(1.0, 2.0)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_model_does_after_its_head_is_seen(config: Any, expected: AfterHead, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype).train()
    before = torch.random.get_rng_state()
    assert after_head(model) == expected
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), before)
