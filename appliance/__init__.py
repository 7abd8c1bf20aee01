"""The fine-tuning appliance: a CSV goes in, a proven model comes out."""

__version__ = "0.1.0"
