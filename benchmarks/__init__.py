"""Figures that the README states, measured anew: `make bench`."""
