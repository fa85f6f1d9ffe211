"""From protobuf messages to the domain: every field is checked here."""
