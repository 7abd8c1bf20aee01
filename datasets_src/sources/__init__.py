"""Rows that others wrote: readers of their formats."""
