"""Converts values of the domain to protobuf messages."""
