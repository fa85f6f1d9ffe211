"""Structured logs, of our own and of native libraries."""
