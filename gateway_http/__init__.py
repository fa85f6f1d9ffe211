"""The OpenAI-compatible HTTP front of the chatrpc service."""
