"""Tiny encoders with random weights, for tests, each with a tokenizer as models of its kind have it.

>>> base = tiny_bert(tmp_path / "base")
>>> base = tiny_encoder(tmp_path / "other", "xlm-roberta")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import BertWordPieceTokenizer, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import RobertaProcessing, TemplateProcessing
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedTokenizerFast

from appliance.process.files import read_json, write_json
from appliance.tasks.classify import Classify
from appliance.tasks.task import Task

TEXTS = ("사과 배 감 귤 밤 좋아요 싫어요 별로 최고 늦어요 빨라요 기쁨 슬픔 중립", "the good bad ? 0 1 2 3 4 5 6 7 8 9")
_SQUARE = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
_ANGLED = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
# Kind of model -> its model_type, the class of its tokenizer, and what its config has beside the sizes.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "BertTokenizer", {}),
    "roberta": ("roberta", "RobertaTokenizer", {"type_vocab_size": 1}),
    "klue-roberta": ("roberta", "BertTokenizer", {"type_vocab_size": 1, "tokenizer_class": "BertTokenizer"}),
    "xlm-roberta": ("xlm-roberta", "XLMRobertaTokenizer", {"type_vocab_size": 1}),
    "electra": ("electra", "ElectraTokenizer", {"embedding_size": 32}),
    "distilbert": ("distilbert", "DistilBertTokenizer", {}),
    # no model of its kind takes token_type_ids, which its tokenizer makes
    "distilbert-of-bert": ("distilbert", "BertTokenizer", {}),
    "deberta-v2": ("deberta-v2", "DebertaV2Tokenizer", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "albert": ("albert", "AlbertTokenizer", {"embedding_size": 32}),
    "modernbert": ("modernbert", "PreTrainedTokenizerFast", {"global_attn_every_n_layers": 2, "local_attention": 16}),
}
POSITIONS = 128


def tiny_bert(folder: Path, texts: Sequence[str] = TEXTS, *, hidden: int = 64, vocabulary: int = 400) -> Path:
    """One that has learnt nothing, saved as on the Hub: with the head of masked words, without one for classes."""
    return tiny_encoder(folder, "bert", texts, hidden=hidden, vocabulary=vocabulary)


def tiny_encoder(
    folder: Path, kind: str, texts: Sequence[str] = TEXTS, *, hidden: int = 64, vocabulary: int = 400
) -> Path:
    """One of KINDS that has learnt nothing, saved as its makers do: with a head, but none for your classes."""
    family, word_class, more = KINDS[kind]
    backend, names = _WORDS.get(kind, _word_pieces)(texts, vocabulary)
    words = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    torch.manual_seed(0)
    offset = words.pad_token_id + 1 if "roberta" in family else 0  # fairseq counts positions behind the pad token
    sizes = {"max_position_embeddings": POSITIONS + offset, "vocab_size": len(words), "initializer_range": 0.1}
    of_distilbert = {"dim": hidden, "n_layers": 2, "n_heads": 4, "hidden_dim": 2 * hidden}
    of_others = {
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 2 * hidden,
    }
    sizes |= of_distilbert if family == "distilbert" else of_others
    ids = {name: getattr(words, name) for name in ("pad_token_id", "cls_token_id", "sep_token_id")}
    ids |= {"bos_token_id": words.cls_token_id, "eos_token_id": words.sep_token_id}
    config = AutoConfig.for_model(family, **sizes, **ids, **more)
    whole = transformers.ElectraForPreTraining if family == "electra" else AutoModelForMaskedLM.from_config
    model = whole(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases: ones and zeros would hide a missing one
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    own = {"tokenizer_class": word_class, "model_max_length": POSITIONS, **names}
    if kind == "distilbert-of-bert":
        own["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    if word_class == "BertTokenizer":
        own |= {"do_lower_case": False, "strip_accents": False}
    write_json(folder / "tokenizer_config.json", own)
    return folder


def _word_pieces(texts: Sequence[str], vocabulary: int) -> tuple[Tokenizer, dict[str, Any]]:
    """As BERT, ELECTRA and klue/roberta-base have them."""
    words = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    words.train_from_iterator(texts, vocab_size=vocabulary, min_frequency=1, show_progress=False)
    backend = words._tokenizer
    backend.post_processor = _around(backend, "[CLS]", "[SEP]", between="[SEP]", second=1)
    return backend, _SQUARE | {"mask_token": "[MASK]"}


def _bytes(texts: Sequence[str], vocabulary: int, names: dict[str, str]) -> tuple[Tokenizer, dict[str, Any]]:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [names["cls_token"], names["pad_token"], names["sep_token"], names["unk_token"], names["mask_token"]]
    learner = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, learner)
    backend.post_processor = _around(backend, names["cls_token"], names["sep_token"])
    return backend, names


def _of_roberta(texts: Sequence[str], vocabulary: int) -> tuple[Tokenizer, dict[str, Any]]:
    """Its offsets leave out the space that a token of bytes begins with."""
    backend, names = _bytes(texts, vocabulary, _OF_ROBERTA)
    end, begin = ((token, backend.token_to_id(token)) for token in (names["sep_token"], names["cls_token"]))
    backend.post_processor = RobertaProcessing(end, begin, trim_offsets=True, add_prefix_space=False)
    return backend, names


def _unigrams(texts: Sequence[str], vocabulary: int, names: dict[str, str]) -> tuple[Tokenizer, dict[str, Any]]:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = [names["cls_token"], names["pad_token"], names["sep_token"], names["unk_token"]]
    learner = trainers.UnigramTrainer(
        vocab_size=vocabulary, special_tokens=special, unk_token=names["unk_token"], show_progress=False
    )
    backend.train_from_iterator(texts, learner)
    backend.add_special_tokens([names["mask_token"]])
    backend.post_processor = _around(backend, names["cls_token"], names["sep_token"])
    return backend, names


def _around(backend: Tokenizer, begin: str, end: str, *, between: str = "", second: int = 0) -> TemplateProcessing:
    """`between`: two texts, if not twice `end` as RoBERTa has it; `second`: the type of the second one's tokens."""
    between = between or f"{end} {end}"
    ids = [(token, backend.token_to_id(token)) for token in (begin, end)]
    return TemplateProcessing(
        single=f"{begin} $A {end}", pair=f"{begin} $A {between} $B:{second} {end}:{second}", special_tokens=ids
    )


_OF_ROBERTA = {**_ANGLED, "mask_token": "<mask>", "bos_token": "<s>", "eos_token": "</s>"}
_OF_ALBERT = {**_SQUARE, "mask_token": "[MASK]"}
_WORDS = {
    "roberta": _of_roberta,
    "xlm-roberta": lambda texts, size: _unigrams(texts, size, _OF_ROBERTA),
    "deberta-v2": lambda texts, size: _unigrams(texts, size, _OF_ALBERT),
    "albert": lambda texts, size: _unigrams(texts, size, _OF_ALBERT),
    "modernbert": lambda texts, size: _bytes(texts, size, _OF_ALBERT),
}


def head_adapter(folder: Path, base: Path, names: Sequence[str] = ("기쁨", "슬픔", "중립"), **how: Any) -> Path:
    """An adapter with a head for these classes; see `random_adapter`."""
    return random_adapter(folder, base, Classify(tuple(names)), **how)


def random_adapter(folder: Path, base: Path, task: Task, *, strength: float = 0.05, **how: Any) -> Path:
    """An adapter of a base for `task` as training saves it. `strength`: of its random weights. `how`: of LoraConfig."""
    model = task.load(base)
    whole = task.trained_whole(model) or None
    config = LoraConfig(task_type=task.peft_type, target_modules="all-linear", modules_to_save=whole, **how)
    tuned = get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(strength * torch.randn_like(parameter))
    tuned.save_pretrained(folder)
    own = read_json(base / "config.json")
    if more := task.config(own):
        write_json(folder / "config.json", own | more)
    return folder
