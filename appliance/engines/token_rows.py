"""Single rows of the embeddings and of the head, trained beside an adapter: peft's `trainable_token_indices`.

peft keeps a copy of each row and puts it into the matrix in every forward pass. What it leaves out, and what the
libraries around it change, is put right here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from peft.utils.other import TrainableTokensWrapper

from appliance.errors import EnvironmentUnavailable


class _TokenRows(TrainableTokensWrapper):  # type: ignore[misc]
    """peft's wrapper, whose `weight` is the base's while the adapter is off.

    peft's own always has the trained rows in it, and both trl's and Unsloth's losses read the head's weight instead of
    calling it (trl 1.14, sft_trainer.py, _chunked_ce_forward; unsloth, models/llama.py, _CausalLM_fast_forward).
    """

    bias = None  # both ask for it; a head with a bias is refused below

    def _getattr_wrapped(self, name: str, modules: Any) -> Any:
        if name == "weight" and self.token_adapter.disable_adapters:
            return self.token_adapter.base_layer.weight
        return super()._getattr_wrapped(name, modules)


def indices(model: Any, tokens: Sequence[int]) -> list[int] | dict[str, list[int]] | None:
    """`trainable_token_indices` of a LoraConfig: the rows of `tokens` in the embeddings and in the head of `model`.

    If they share one matrix, peft finds the head by itself. Raises EnvironmentUnavailable: the head has a bias, which
    peft would leave out (peft 0.21, trainable_tokens/layer.py, forward_adapters).
    """
    if not tokens:
        return None
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise EnvironmentUnavailable(
            "peft cannot train single rows of a head with a bias",
            hint="choose the instruct version of this base, or use tuning.method=full, which trains every row",
        )
    if head.weight is embeddings.weight:
        return list(tokens)
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(module)]: list(tokens) for module in (embeddings, head)}


def complete(model: Any, *, trains: bool) -> Any:
    """A PEFT model as peft left it -> the same model, its token rows ready for both engines.

    `trains`: the rows are trained, in float32, as LoRA's matrices are; Unsloth freezes whatever is not LoRA's.
    """
    for wrapper in wrappers(model):
        wrapper.__class__ = _TokenRows
        for row in wrapper.token_adapter.trainable_tokens_delta.values():
            row.data = row.data.float()
            row.requires_grad_(trains)
    return model


def wrappers(model: Any) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, TrainableTokensWrapper))
