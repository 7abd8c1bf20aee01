"""How answers are decoded: greedy or sampled, and the tokens that end them.

The only module that builds a GenerationConfig. Cheap to import: the command line names `Sampling` before torch loads.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from appliance.recipe.fields import SamplingSection

IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_GREEDY_BELOW = 0.01  # logits divided by a smaller temperature come close to float32's maximum


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    `temperature` below 0.01 always takes the likeliest token. `top_p`: sample only from the likeliest tokens that
    together reach this probability (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration").
    `repetition_penalty` and `no_repeat_ngram_size` are transformers' own, and count the prompt's tokens too. `seed`: in
    batched generation each row has its own random stream, derived from `seed` and its prompt, so that an answer does
    not depend on what shares the batch (except for near-ties in rounding); a chat does not use it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < _GREEDY_BELOW


GREEDY = Sampling(temperature=0.0)


def from_recipe(section: SamplingSection, *, seed: int = 0) -> Sampling:
    """The recipe's `evaluate.sampling`, without the question of what it applies to (`scored`)."""
    return Sampling(**section.model_dump(exclude={"scored"}), seed=seed)


def scored(section: SamplingSection, *, seed: int = 0) -> Sampling:
    """How the test rows are answered: greedily, unless the recipe's `evaluate.sampling.scored` says otherwise."""
    return from_recipe(section, seed=seed) if section.scored else GREEDY


def answer_begins(width: int, *, continues: bool) -> int:
    """Where in the ids that `model.generate` returns, (B, …), the answers to prompts of `width` ids begin.

    `continues`: whether an answer goes on behind its prompt (tasks/task.py); a decoder has one token before it.
    """
    return width if continues else 1


def as_settings(sampling: Sampling) -> dict[str, Any]:
    """The settings of a generation_config.json with which `model.generate` decodes as evaluation does."""
    settings = _chosen(sampling)
    if sampling.repetition_penalty != 1:
        settings["repetition_penalty"] = sampling.repetition_penalty
    if sampling.no_repeat_ngram_size:
        settings["no_repeat_ngram_size"] = sampling.no_repeat_ngram_size
    return settings


def _chosen(sampling: Sampling) -> dict[str, Any]:
    """How transformers chooses the next token; its own top_k, if left unset, is 50."""
    if sampling.greedy:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}


def keep_only_ids(model: Any) -> None:
    """Drops what the model's own generation_config.json says about decoding, except its special ids.

    transformers takes from it whatever a call leaves unset: a base's suppressed or forced tokens and least lengths
    would take part in evaluation, but not in the release.
    """
    from transformers import GenerationConfig

    own = getattr(model, "generation_config", None)
    if own is not None:
        ids = {name: getattr(own, name, None) for name in IDS}
        model.generation_config = GenerationConfig(**ids)


def end_ids(model: Any, eos_token_id: int | None) -> set[int]:
    """The ids that end an answer: the EOS that training used, and every one that the model itself declares.

    A base model is thus judged by its own way of stopping too. Empty if neither names any.
    """
    from appliance.prompt.special_tokens import eos_ids

    declared = getattr(model.generation_config, "eos_token_id", None)
    return {*eos_ids(eos_token_id), *eos_ids(declared)}


def generation_config(
    sampling: Sampling,
    *,
    max_new_tokens: int,
    ends: Collection[int],
    pad_token_id: int | None,
    bos_token_id: int | None = None,
    transformers_samples: bool = False,
) -> GenerationConfig:
    """The settings of one `model.generate` call; whatever is left unset comes from the model's generation_config.json.

    Args:
        ends: ids from `end_ids`; if empty, only `max_new_tokens` ends an answer.
        pad_token_id: None pads with one of `ends`.
        transformers_samples: transformers samples from torch's global generator, unless `sampling` is greedy. Otherwise
            the caller samples in a logits processor, and transformers takes the token that is left.
    """
    from transformers import GenerationConfig

    return GenerationConfig(
        **_chosen(sampling if transformers_samples else GREEDY),
        max_new_tokens=max_new_tokens,
        num_beams=1,
        repetition_penalty=sampling.repetition_penalty,
        no_repeat_ngram_size=sampling.no_repeat_ngram_size,
        bos_token_id=bos_token_id,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad_token_id if pad_token_id is not None else min(ends, default=None),
    )
