"""The run directory: layout, ledger, lock, and the readers of its result files."""
