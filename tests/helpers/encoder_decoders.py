"""Tiny encoder-decoders with random weights, for tests: T5, mT5 and BART as their configs and tokenizers have them.

>>> base = tiny_encoder_decoder(tmp_path / "base", "t5")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSeq2SeqLM, BartConfig, MT5Config, PreTrainedTokenizerFast, T5Config

from appliance.process.files import write_json
from tests.helpers.models import HEAD_STD, VOCAB, tiny_tokenizer

Kind = Literal["t5", "mt5", "bart"]


def tiny_encoder_decoder(folder: Path, kind: Kind = "t5", *, dtype: str = "float32", seed: int = 0) -> Path:
    """One that has learnt nothing, with a tokenizer of one token a byte. BART's texts begin with BOS, too."""
    torch.manual_seed(seed)
    words = closing_tokenizer(begins=kind == "bart")
    model = AutoModelForSeq2SeqLM.from_config(_config(kind))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases: ones and zeros would hide a missing one
                parameter.add_(0.1 * torch.randn_like(parameter))
        if kind != "t5":  # its tied head is used at 1 / sqrt(d_model), so its embeddings are as large as they come
            head = model.get_output_embeddings().weight
            head.mul_(HEAD_STD / head.std())
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def closing_tokenizer(*, begins: bool = False) -> PreTrainedTokenizerFast:
    """As tiny_tokenizer, but it ends a text with EOS; `begins`: and begins it with BOS."""
    words = tiny_tokenizer()
    special = [("<s>", 1), ("</s>", 2)] if begins else [("</s>", 2)]
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>" if begins else "$A </s>", special_tokens=special
    )
    names: dict[str, Any] = {"bos_token": "<s>"} if begins else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer, eos_token="</s>", pad_token="<pad>", **names
    )


def t5_files(folder: Path) -> Path:
    """A folder with the tokenizer and config.json of a T5 as it was published: SentencePiece's unigrams, sentinels."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    space = {"replacement": "▁", "prepend_scheme": "always"}
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**space)]
    )
    backend.decoder = decoders.Metaspace(**space)
    special = ["<pad>", "</s>", "<unk>"]
    learner = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(
        ["가격은 얼마예요? 만 원입니다. What is it? A shop in Seoul, 서울 12345."] * 20, learner
    )
    sentinels = [f"<extra_id_{i}>" for i in range(100)]
    backend.add_special_tokens(sentinels)
    backend.post_processor = TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "additional_special_tokens": sentinels}
    write_json(folder / "special_tokens_map.json", named)
    own = {"extra_ids": 100, "model_max_length": 512, "tokenizer_class": "T5Tokenizer"}
    write_json(folder / "tokenizer_config.json", named | own)
    T5Config(vocab_size=512, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2).save_pretrained(folder)
    return folder


def _config(kind: Kind) -> Any:
    if kind == "bart":
        return BartConfig(
            vocab_size=VOCAB,
            d_model=64,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=128,
            decoder_ffn_dim=128,
            max_position_embeddings=512,
            init_std=0.12,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            decoder_start_token_id=2,
            forced_eos_token_id=2,
        )
    own: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if kind == "mt5" else {}
    return {"t5": T5Config, "mt5": MT5Config}[kind](
        vocab_size=VOCAB,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        eos_token_id=2,
        pad_token_id=0,
        decoder_start_token_id=0,
        **own,
    )
