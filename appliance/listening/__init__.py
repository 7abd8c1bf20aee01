"""Servers of ours: who may ask them, and where and how they listen."""
