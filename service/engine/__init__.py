"""Continuous batching of token sequences over one model. Knows no text and no wire."""
