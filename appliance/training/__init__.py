"""Row order, the trainer, its callbacks, checkpoints."""
