"""Trace contexts, and spans exported through OpenTelemetry."""
