"""Continuous batching of token sequences over one model, independent of text and wire formats."""
