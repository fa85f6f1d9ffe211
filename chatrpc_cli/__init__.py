"""The `chatrpc` command."""
