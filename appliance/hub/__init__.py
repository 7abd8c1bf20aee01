"""The only importer of huggingface_hub: client, cache, token, errors, downloads and uploads."""
