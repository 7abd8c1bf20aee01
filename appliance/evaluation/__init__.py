"""Generating answers, loss, scores, the verdict, comparing runs."""
