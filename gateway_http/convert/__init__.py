"""Pure functions between OpenAI's JSON and the wire."""
