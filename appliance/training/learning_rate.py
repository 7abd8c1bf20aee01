"""Which learning rates are usual, and what to do if the loss is no longer a number."""

from __future__ import annotations

from appliance.findings import Finding

# Published fine-tunings lie well inside: QLoRA 1e-4 to 2e-4 (Dettmers et al. 2023, table 9), LoRA on GPT-2 and GPT-3
# 2e-4 (Hu et al. 2021, appendix D), all weights 1e-5 to 5e-5; the toy models of the shipped recipes take 1e-3 to 1e-2.
USUAL = (1e-6, 1e-2)


def is_usual(rate: float) -> bool:
    return USUAL[0] <= rate <= USUAL[1]


def findings(rate: float) -> list[Finding]:
    """A learning rate that lost or gained a few zeros, to be seen before the first step; empty if it is usual."""
    if is_usual(rate):
        return []
    why = "training would diverge" if rate > USUAL[1] else "the weights would hardly move"
    fix = f"{why}; usual are 1e-4 to 1e-3 for adapters and 1e-5 to 1e-4 for all weights: --set train.learning_rate=2e-4"
    return [Finding("learning rate", f"{rate:g}", f"{USUAL[0]:g} to {USUAL[1]:g}", "warning", fix)]


def hint_if_not_finite(rate: float) -> str:
    """What to do about a loss or gradient that is not finite, the likeliest cause first."""
    from appliance.training import checkpoints  # imports transformers, which `check` can do without

    far = "" if is_usual(rate) else f", which is far from the usual {USUAL[0]:g} to {USUAL[1]:g}"
    return (
        f"lower train.learning_rate ({rate:g}{far}), or train in bfloat16 or float32 (model.dtype); if that does not "
        "help, look at these rows with `appliance inspect`. The last good checkpoint is kept; after a change, "
        f"{checkpoints.START_OVER}"
    )
