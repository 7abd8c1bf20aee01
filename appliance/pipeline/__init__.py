"""One file a stage. A stage takes sections and plain values, works in its own folder, and returns a one-line summary.

No stage imports another: it reads what an earlier one wrote into the run directory.
"""
