"""API keys, their secrets, their limits and what a request costs."""
