"""Measures the README's figures again: `make bench`."""
