"""Loading models with Unsloth, or with transformers and peft; the memory they need; decoding settings."""
