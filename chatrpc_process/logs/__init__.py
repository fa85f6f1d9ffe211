"""Structured logs of our own code and of native libraries."""
