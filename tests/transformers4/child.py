"""What a user does with a release, with the transformers and peft of whoever runs this file. Imports nothing of ours.

>>> python tests/transformers4/child.py REQUEST.json     # writes REQUEST.json.result
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import PeftModel
from transformers import AutoConfig, AutoTokenizer, pipeline

NEW_TOKENS = 8
CLASSIFIER = "AutoModelForSequenceClassification"


def main(request_path: Path) -> None:
    """The file holds requests by name; see `answers`."""
    requests = json.loads(request_path.read_text(encoding="utf-8"))
    found = {name: answers(request) for name, request in requests.items()}
    versions = {"transformers": transformers.__version__, "peft": peft.__version__}
    result = json.dumps({"versions": versions, "answers": found}, ensure_ascii=False)
    request_path.with_suffix(".result").write_text(result, encoding="utf-8")


def answers(request: dict[str, Any]) -> dict[str, Any]:
    """`request`: base, model and adapter folders and their class of model, conversations, and texts; or, of what finds
    answers, the code of the cards of model and adapter, and questions with their texts.
    """
    if "code" in request:
        return {part: found_in_texts(code, request["asked"]) for part, code in request["code"].items()}
    kind = getattr(transformers, request["class"])
    if request["class"] == CLASSIFIER:
        own = {"config": AutoConfig.from_pretrained(request["adapter"]), "ignore_mismatched_sizes": True}
        tuned = PeftModel.from_pretrained(kind.from_pretrained(request["base"], **own), request["adapter"])
        return {
            "model": labelled(request["model"], request["model"], request),
            "adapter": labelled(tuned.merge_and_unload(), request["adapter"], request),
        }
    model = kind.from_pretrained(request["model"], dtype=torch.float32)
    tuned = PeftModel.from_pretrained(kind.from_pretrained(request["base"], dtype=torch.float32), request["adapter"])
    return {
        "model": used(model, request["model"], request),
        "adapter": used(tuned, request["adapter"], request),
    }


def found_in_texts(code: str, asked: list[tuple[str, str]]) -> dict[str, Any]:
    """Parts of texts with their scores, as the card's code gives them, and how the tokenizer reads both."""
    names: dict[str, Any] = {}
    exec(code, names)
    return {
        "prompts": [names["tokenizer"](*both)["input_ids"] for both in asked],
        "types": [names["tokenizer"](*both).get("token_type_ids") for both in asked],
        "answers": [[[text, round(score, 3)] for text, score in names["answers"](*both)] for both in asked],
    }


def labelled(model: Any, folder: str, request: dict[str, Any]) -> dict[str, Any]:
    """Labels with their probabilities, as the card's code gives them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, dtype=torch.float32)
    texts = [messages[-1]["content"] for messages in request["conversations"]]
    found = classify(texts, top_k=None)
    return {
        "prompts": [tokenizer(text)["input_ids"] for text in [*texts, *request["texts"]]],
        "answers": [[[one["label"], round(one["score"], 3)] for one in labels] for labels in found],
        "longest": min(tokenizer.model_max_length, 1 << 40),
    }


def used(model: Any, folder: str, request: dict[str, Any]) -> dict[str, Any]:
    """Ids of prompts, texts and answers, as the card's code makes them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts, answers, likeliest = [], [], []
    for messages in request["conversations"]:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        prompts.append(inputs["input_ids"][0].tolist())
        with torch.inference_mode():
            answer = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
            is_continued = not model.config.is_encoder_decoder
            begun = {} if is_continued else {"decoder_input_ids": answer[:, :1]}
            likeliest.append([round(x, 3) for x in model(**inputs, **begun).logits[0, -1].topk(4).values.tolist()])
        answers.append(answer[0, inputs["input_ids"].shape[1] if is_continued else 0 :].tolist())
    return {
        "prompts": prompts,
        "answers": answers,
        "likeliest logits": likeliest,
        "texts": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in request["texts"]],
        "with special tokens": [tokenizer(text)["input_ids"] for text in request["texts"]],
        "spelt": [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers],
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "all special": sorted(tokenizer.all_special_tokens),
        "longest": min(tokenizer.model_max_length, 1 << 40),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
