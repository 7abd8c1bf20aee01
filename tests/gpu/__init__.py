"""What only a GPU shows: Unsloth's rewritten trainer, 4 bits, memory, speed. Not collected without one."""
