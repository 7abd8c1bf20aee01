"""What only a GPU shows: Unsloth's rewritten trainer, 4 bits, memory, speed. Not collected where there is none."""
