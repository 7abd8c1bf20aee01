"""This process: output, log, signals, child processes, atomic files, redaction."""
