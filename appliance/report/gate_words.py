"""The gates of a proof and of a release in words, for people who read no names.

>>> of({"name": "tuned_model_stops", "passed": True, "measured": 1.0, "bound": 0.8, "meaning": "…"}, answers=41)
'It stops by itself: 100 % of 41 answers, wanted at least 80 %'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from appliance.wording import counted

# What is true of the release if the gate passed. A gate that is not named here is shown by its technical meaning.
_CLAIMS = {
    # on the train rows, before the first step (prompt/stop_check.py)
    "eos_is_the_last_label": "Every train row ends with EOS, and that is trained",
    "eos_is_trained_once": "EOS is trained exactly once in every train row",
    "padding_is_not_trained": "Padding is neither seen nor trained",
    "bos_as_at_inference": "Train rows begin as prompts do at inference",
    "pad_is_not_eos": "Padding is not EOS",
    # of the proof (weights/proof.py)
    "all_finite": "No answer of the merged model has an infinite or undefined number in it",
    "every_tensor_finite": "No weight of the merged model is infinite or undefined",
    "tensors_complete": "The merged model has every tensor of the base, in 16 bits, and no other",
    "untrained_is_the_base": "What was not trained is the base's, bit for bit",
    "every_delta_is_in": "What was trained is in the merged model, up to rounding",
    "config_is_the_base": "config.json is the base's, but for what training sets",
    "decodes_as_evaluated": "It decodes as it did in the evaluation",
    # of the release (release/gates.py, reload.py, tokenizer_files.py)
    "best_is_what_was_kept": "The weights that were kept are the best checkpoint's",
    "best_is_released": "The adapter in the release is the best checkpoint's",
    "adapter_names_its_base": "The adapter names the base it belongs to",
    "proven_is_released": "The model in the release is the proven one",
    "exported_is_released": "The GGUF files in the release are the proven ones",
    "sixteen_bits": "The weights are stored as config.json says",
    "only_known_files": "Nothing but the files of a model is in the release",
    "no_remote_code": "The release brings no code of its own",
    "release_is_clean": "No secret, and nothing about this machine, is in the release",
    "logs_are_clean": "No secret is in the logs",
    "no_secret_in_the_run": "No secret is in the run directory",
    "tokenizer_is_the_bases": "The tokenizer is the base's",
    "one_prompt_everywhere": "Training, evaluation and the published chat template give the same prompt",
    "same_tokens": "The published tokenizer gives the same ids",
    "same_special_ids": "BOS, EOS and padding are the same everywhere",
    "generation_config_sane": "generation_config.json is sound",
    # of a GGUF file (pipeline/export.py)
    "gguf_is_complete": "The file has every tensor of the merged model, and no other",
    "gguf_tensors_match": "Every tensor is the merged model's, up to what its type rounds away",
    "gguf_vocabulary": "Its tokens are the tokenizer's",
    "gguf_prompt_ids": "It turns every test prompt into the ids that were trained",
    "gguf_predicts_alike": "llama.cpp predicts what the merged model predicts, up to rounding",
}


def of(gate: Mapping[str, Any], *, answers: int | None = None) -> str:
    """One gate in a sentence without its full stop. `gate`: as in hub.json. `answers`: that stopping was judged by."""
    name, measured, bound = gate["name"], gate["measured"], gate["bound"]
    is_number = all(isinstance(value, int | float) for value in (measured, bound))
    if name == "tuned_model_stops" and is_number:
        of_answers = f" of {counted(answers, 'answer')}" if answers is not None else " of its answers"
        return f"It stops by itself: {measured * 100:.3g} %{of_answers}, wanted at least {bound * 100:.3g} %"
    if name == "best_val_loss_again" and is_number:
        return (
            "Read back from disk, the kept weights have the val loss that training saw: "
            f"{measured * 100:.2g} % apart, at most {bound * 100:.2g} %"
        )
    if name == "not_worse":
        return f"Compared with the base on the test rows: {measured}, wanted {bound}"
    if name == "forgot_nothing":
        return f"Compared with the earlier run on that run's test rows: {measured}, wanted {bound}"
    if name == "merged_equals_trained" and isinstance(bound, float) and bound > 0 and is_number:
        return (
            f"The merged model answers as the trained one does: {measured:.2g} nats of divergence a position, "
            f"at most {bound:.2g}"
        )
    if name == "merged_equals_trained":
        return "The merged model was proven to be the trained one"
    if name == "top1_agreement" and is_number:
        return (
            f"Merged and trained model have the same likeliest token in {measured * 100:.4g} % of the positions, "
            f"wanted at least {bound * 100:.4g} %"
        )
    if name == "nearer_to_tuned" and is_number:
        return (
            f"The merged model is nearer to the trained one than to the base: {measured:.2g} nats of divergence, "
            f"less than {bound:.2g}"
        )
    return _CLAIMS.get(name, f"{name}: {gate['meaning']}")


def failed(gates: Iterable[Mapping[str, Any]], accepted: Iterable[str] = ()) -> list[str]:
    """What refused a release, one text a gate, with what was found. `accepted`: names that may fail."""
    allowed = set(accepted)
    return [_not(gate) for gate in gates if not gate["passed"] and gate["name"] not in allowed]


def _not(gate: Mapping[str, Any]) -> str:
    if gate["name"] in ("tuned_model_stops", "not_worse", "forgot_nothing", "best_val_loss_again"):
        sentence = of(gate)
        return sentence[0].lower() + sentence[1:]
    return f"“{of(gate)}” does not hold: {gate['measured']} {gate['meaning']}"
