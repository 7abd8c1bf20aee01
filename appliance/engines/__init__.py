"""Loading models: Unsloth, or transformers with peft; the memory they need, decoding settings."""
