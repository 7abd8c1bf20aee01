"""The only importer of huggingface_hub: client, cache, token, errors, down and up."""
