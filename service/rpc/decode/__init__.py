"""Converts protobuf messages to values of the domain, and checks every field."""
