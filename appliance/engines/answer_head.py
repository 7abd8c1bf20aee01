"""The output head on the trained tokens alone, without its logits ever being computed twice or all held at once.

A head of V rows costs as much as the blocks of a small model, and most tokens of a step are prompt. So exactly the
labelled positions go through it, HEAD_TOKENS at a time; since a frozen head needs no gradient of its own, the gradient
of the hidden states is computed in the forward pass, from the same logits. This is what Liger's fused linear cross
entropy does on a GPU (Hsu et al. 2024, "Liger Kernel", section 3.2), here in plain torch, for any device.

Shapes: N labelled tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

HEAD_TOKENS = 256  # tokens whose logits are held at a time: 150 MiB in float32 for a vocabulary of 152,000
# How far the logits that `after_head` predicts may be from the model's own, relative to the largest. Both come from the
# same matrix product, so they agree to a rounding; a soft cap that was missed would be off by more.
LARGEST_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@dataclass(frozen=True)
class AfterHead:
    """What an architecture does to the output of its head: logits = cap * tanh(scale * output / cap)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        scaled = output if self.scale == 1.0 else output * self.scale
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)


def summed_loss(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(negative log-likelihood in nats, number of labels that are the most probable token), summed over all tokens.

    Both are float32 scalars. Only the first has a gradient, for `hidden` alone: the head must be frozen.

    Args:
        hidden: (N, H), the states that predict `labels`.
        weight: (V, H).
        bias: (V,) or None.
        labels: (N,), none of them ignored.
    """
    assert not weight.requires_grad
    assert bias is None or not bias.requires_grad
    loss, correct = _SummedLoss.apply(hidden, weight, bias, labels)  # type: ignore[no-untyped-call]
    return loss, correct


def summed_nll(causal: Any, hidden: torch.Tensor, labels: torch.Tensor, after: AfterHead) -> torch.Tensor:
    """As the loss of `summed_loss`, for any head and without a gradient: a float64 scalar.

    `causal`: a causal language model of transformers whose logits are `after` of its head's output.
    """
    head, total = causal.get_output_embeddings(), torch.zeros((), dtype=torch.float64, device=labels.device)
    for states, wanted in zip(torch.split(hidden, HEAD_TOKENS), torch.split(labels, HEAD_TOKENS), strict=True):
        logits = after(head(states).float())  # (HEAD_TOKENS or fewer, V)
        total += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
    return total


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = hidden.device.type
        # autocast would convert the whole matrix for every part
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        loss, correct = hidden.new_zeros(2, dtype=torch.float32).unbind()
        with torch.autocast(device, enabled=False):
            for start in range(0, len(hidden), HEAD_TOKENS):
                part, wanted = slice(start, start + HEAD_TOKENS), labels[start : start + HEAD_TOKENS, None]
                logits = torch.nn.functional.linear(hidden[part].to(dtype), weight, bias).float()
                largest = logits.amax(1, keepdim=True)
                of_wanted = logits.gather(1, wanted)
                powers = logits.sub_(largest).exp_()
                total = powers.sum(1, keepdim=True)
                loss += (largest + total.log() - of_wanted).sum()
                correct += (of_wanted == largest).sum()
                if gradient is not None:  # softmax minus one at the label, times the head
                    powers.scatter_add_(1, wanted, -total)
                    gradient[part] = (powers.to(dtype) @ weight).float() / total
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, of_loss: torch.Tensor, _: Any) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * of_loss.to(gradient.dtype), None, None, None


def after_head(causal: Any) -> AfterHead | None:
    """What the model does to the output of its head, seen from a few tokens; None: none of the ways known here.

    `causal`: a causal language model of transformers, not wrapped by peft. Its config alone does not tell:
    `logits_scaling` divides in Granite and multiplies in HyperCLOVA X. Computed once per model.
    """
    if causal not in _SEEN:
        _SEEN[causal] = _look(causal)
    return _SEEN[causal]


_SEEN: WeakKeyDictionary[Any, AfterHead | None] = WeakKeyDictionary()


def _look(causal: Any) -> AfterHead | None:
    config, head = causal.config.get_text_config(), causal.get_output_embeddings()
    if causal.config.is_encoder_decoder or head is None:  # of another task
        return None
    values = [getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "lm_head_multiplier")]
    scales = [scale for value in values if value for scale in (float(value), 1 / float(value))]
    cap = getattr(config, "final_logit_softcapping", None)
    ids = torch.arange(8, device=causal.device)[None] % config.vocab_size
    was_training = causal.training
    causal.eval()
    with torch.no_grad():
        output = head(causal.base_model(input_ids=ids, use_cache=False).last_hidden_state)
        logits = causal(input_ids=ids, use_cache=False).logits.float()
    causal.train(was_training)
    allowed = LARGEST_DIFFERENCE[output.dtype] * logits.abs().max()
    known = (AfterHead(scale, cap) for scale in (1.0, *scales))
    return next((one for one in known if (one(output.float()) - logits).abs().max() <= allowed), None)
