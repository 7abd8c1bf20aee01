"""Rows that a model writes: paraphrases and self-instruct."""
