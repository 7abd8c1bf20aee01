"""A tiny BERT with random weights, for tests, with a WordPiece tokenizer as Korean BERTs have it.

>>> base = tiny_bert(tmp_path / "base")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

TEXTS = ("사과 배 감 귤 밤 좋아요 싫어요 별로 최고 늦어요 빨라요 기쁨 슬픔 중립", "the good bad ? 0 1 2 3 4 5 6 7 8 9")


def tiny_bert(folder: Path, texts: Sequence[str] = TEXTS, *, hidden: int = 64, vocabulary: int = 400) -> Path:
    """One that has learnt nothing, saved as on the Hub: with the head of masked words, without one for classes."""
    words = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    words.train_from_iterator(texts, vocab_size=vocabulary, min_frequency=1, show_progress=False)
    tokenizer = BertTokenizerFast(tokenizer_object=words._tokenizer, do_lower_case=False, strip_accents=False)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        max_position_embeddings=128,
        initializer_range=0.1,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
