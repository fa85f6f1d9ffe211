"""From the domain to protobuf messages."""
