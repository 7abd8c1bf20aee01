"""A proven model that answers: loading it, conversations, streaming."""
