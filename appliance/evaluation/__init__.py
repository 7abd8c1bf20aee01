"""Generating answers, the loss, scores, the verdict, comparing runs."""
