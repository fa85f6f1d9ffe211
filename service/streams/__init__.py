"""Admission of requests to an engine and delivery of its outputs, for every engine."""
