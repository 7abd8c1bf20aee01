"""Weights on disk: shards, the merge, model configs, the proof."""
