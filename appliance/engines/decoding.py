"""How answers are decoded: greedy or sampled, and the tokens that end them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from appliance.prompt.format import Prompt


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Each row has a stream of chance of its own, from `seed` and its prompt.

    So the same prompt gets the same answer whatever shares its batch (but for near-ties in rounding); asked twice in
    one call, it gets two. `temperature` 0 or less than 0.01 takes the likeliest token. `top_p`: only the likeliest
    tokens that together reach this probability are drawn (Holtzman et al. 2020, "The Curious Case of Neural Text
    Degeneration"). The last two are transformers' own, and count the prompt's tokens too.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    seed: int = 0


GREEDY = Sampling(temperature=0.0)
GREEDY_BELOW = 0.01  # logits divided by less come near float32's end


def end_ids(model: Any, prompt: Prompt) -> set[int]:
    """The trained EOS, and those under which the base itself stops: it is judged by its own habits as well."""
    own = getattr(model.generation_config, "eos_token_id", None)
    listed = own if isinstance(own, list) else [] if own is None else [own]
    return {prompt.eos_token_id, *listed}
