"""Where the base model comes from, whether it can be tuned, and the demo's own."""
