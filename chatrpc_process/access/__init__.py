"""API keys, their secrets and limits, and the costs of requests."""
