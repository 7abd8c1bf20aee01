"""Answering with a proven model: loading it, conversations, streaming."""
