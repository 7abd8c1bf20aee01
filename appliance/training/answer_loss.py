"""Which loss trl computes on a model, and ours in place of its function while a step or an evaluation runs.

trl's own (`chunked_nll`) rounds the trained tokens of every micro batch up to 256 and computes their logits again in
the backward pass: in short rows that is more work than the full head. engines/answer_head.py does neither, but only
for a frozen head. Import this module only after the engine, like training/trainer.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import trl
import trl.trainer.sft_trainer as trl_trainer
from peft import PeftModel
from trl import SFTTrainer

from appliance.engines import answer_head
from appliance.engines.answer_head import AfterHead
from appliance.prompt import batch as prompt_batch
from appliance.training.lean_steps import LeanTrainer

# The release whose `_chunked_cross_entropy_loss` and `compute_loss` were read and are compared with ours in
# tests/training/test_answer_loss.py. With any other, trl's own are used.
KNOWN_TRL = "1.14."
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loss:
    """How trl's trainer computes the loss.

    `trl_type`: SFTConfig's loss_type; None: what the engine's library set. `after_head`: None if trl's function stays;
    otherwise it is replaced, by ours if `answers_only`, or else by itself with this scale and cap.
    """

    trl_type: str | None
    after_head: AfterHead | None = None
    answers_only: bool = False

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Replaces trl's function, if it is to be replaced, until the end of the block."""
        if self.after_head is None:
            yield
            return
        theirs = trl_trainer._chunked_cross_entropy_loss
        scale, cap = self.after_head.scale, self.after_head.cap
        rescaled = partial(_rescaled, theirs, scale, cap)
        trl_trainer._chunked_cross_entropy_loss = partial(_of_answers, scale) if self.answers_only else rescaled
        try:
            yield
        finally:
            trl_trainer._chunked_cross_entropy_loss = theirs


LIBRARYS = Loss(None)


class LossTrainer(LeanTrainer):
    """trl's trainer that computes its loss as `loss` says."""

    loss = LIBRARYS

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """trl's, whose figures stay on the device until they are logged: it waits for it five times a micro batch."""
        with self.loss.in_use():
            if not self._keeps_figures:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            # What trl's does with this kind of loss before and after it calls the Trainer's (trl 1.14, sft_trainer.py).
            inputs.pop("_prediction_loss_only", None)
            inputs["use_cache"] = False
            loss, outputs = super(SFTTrainer, self).compute_loss(model, inputs, True, num_items_in_batch)
        self._keep_figures(outputs, inputs["attention_mask"])
        return (loss, outputs) if return_outputs else loss

    @property
    def _keeps_figures(self) -> bool:
        """Whether trl computes the figures that were read, and no others."""
        is_chunked = self.loss.trl_type == self.args.loss_type == "chunked_nll" and not self.args.use_liger_kernel
        return is_chunked and not self.aux_loss_enabled and trl.__version__.startswith(KNOWN_TRL)

    def _keep_figures(self, outputs: Any, attention_mask: torch.Tensor) -> None:
        """As trl's `compute_loss`, in tensors of one number. `attention_mask`: (B, T)."""
        mode = "train" if self.model.training else "eval"
        metrics, count = self._metrics[mode], outputs.num_valid_tokens.clamp(min=1)
        metrics["mean_token_accuracy"].append(outputs.num_correct_tokens.detach() / count)
        metrics["entropy"].append(outputs.entropy_sum.detach() / count)
        if mode == "train":
            self._total_train_tokens += attention_mask.sum()  # type: ignore[assignment]  # a number at first
        metrics["num_tokens"] = [self._total_train_tokens]

    def forget_passes(self) -> None:
        """Drops trl's own averages of the passes so far, and their number of tokens."""
        self._metrics["train"].clear()
        self._total_train_tokens = 0

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Without the entropy of the trained tokens, which `answers_only` does not compute."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        if self.loss.answers_only:
            metrics.pop("entropy", None)
        for name, values in metrics.items():
            if values and torch.is_tensor(values[0]):
                metrics[name] = torch.stack(values).tolist()
        super().log(logs, *args, **kwargs)


def choose(model: Any, dtype: str) -> Loss:
    """The loss for training `model`, recorded in the log. Of the transformers engine only: Unsloth has its own.

    `dtype`: the compute dtype.
    """
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    seen, is_known = answer_head.after_head(causal), trl.__version__.startswith(KNOWN_TRL)
    why = _why_not(causal, seen, dtype) if is_known else f"trl is {trl.__version__}, not {KNOWN_TRL}*"
    if why is None:
        _log.info("loss: only the trained tokens go through the head")
        return Loss("chunked_nll", seen, answers_only=True)
    if seen is not None and (is_known or seen == _read_by_trl(causal)):
        _log.info("loss: trl's chunked one: %s", why)
        return Loss("chunked_nll", None if seen == _read_by_trl(causal) else seen)
    _log.info("loss: the model's own, with the logits of all tokens: %s", why)
    return Loss("nll")


def _why_not(causal: Any, seen: AfterHead | None, dtype: str) -> str | None:
    """Why the head cannot be computed on the trained tokens alone; None if it can."""
    head = causal.get_output_embeddings()
    if any(weight.requires_grad for weight in head.parameters()):
        return "the head, or rows of it, are trained"
    if type(head) is not torch.nn.Linear:
        return f"the head is a {type(head).__name__}"
    if seen is None:
        return "the logits are not those of the head"
    if seen.cap is not None:
        return "the logits are soft-capped"
    if dtype == "float16":  # the gradient is computed before the loss is scaled, and much of it would round to zero
        return "float16"
    return None


def _read_by_trl(causal: Any) -> AfterHead:
    """What trl's chunked loss does after the head (trl 1.14, sft_trainer.py, _patch_chunked_ce_lm_head).

    It does not read `logits_scaling`: by itself it trains Granite and HyperCLOVA X on another loss than their own.
    """
    config = causal.config.get_text_config()
    read = [getattr(config, name, None) for name in ("logit_scale", "output_multiplier")]
    scale = next((float(value) for value in read if value is not None), 1.0)
    return AfterHead(scale, getattr(config, "final_logit_softcapping", None))


# Both have the signature of trl's function, behind what `partial` gives them.


def _of_answers(
    scale: float,
    hidden_states: torch.Tensor,
    lm_head_weight: torch.Tensor,
    chunk_size: int,  # noqa: ARG001
    labels: torch.Tensor | None = None,
    shift_labels: torch.Tensor | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
    logit_scale: float = 1.0,  # noqa: ARG001
    final_logit_softcapping: float | None = None,  # noqa: ARG001
    lm_head_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As trl's: (loss, number of correct tokens, summed entropy, number of trained tokens).

    The entropy is nan: it would cost more passes over the logits, and the trainer drops it.

    Args:
        scale: the logits over the output of the head, as seen in the model.
        hidden_states: (B, T, H).
        lm_head_weight, lm_head_bias: (V, H) and (V,) or None, both frozen.
        chunk_size: not used; answer_head.HEAD_TOKENS.
        labels: (B, T), as the collator made them.
        shift_labels: trl passes it only if rows are split over several GPUs, which machine/one_gpu.py refuses.
        num_items_in_batch: the trained tokens of the whole step; None: of this batch.
        logit_scale, final_logit_softcapping: not used; what trl read from the config.
    """
    assert labels is not None
    assert shift_labels is None
    wanted = labels[:, 1:]
    at = (wanted != prompt_batch.IGNORED).nonzero(as_tuple=True)  # by a mask, each use and its gradient would ask again
    hidden = hidden_states[:, :-1][at]  # (N, H)
    if scale != 1.0:
        hidden, lm_head_bias = hidden * scale, None if lm_head_bias is None else lm_head_bias * scale
    loss, correct = answer_head.summed_loss(hidden, lm_head_weight, lm_head_bias, wanted[at])
    count = torch.full((), len(hidden), device=loss.device)
    items = count.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return loss / items, correct, loss.new_full((), torch.nan), count


def _rescaled(theirs: Callable[..., Any], scale: float, cap: float | None, *args: Any, **kwargs: Any) -> Any:
    return theirs(*args, **{**kwargs, "logit_scale": scale, "final_logit_softcapping": cap})
