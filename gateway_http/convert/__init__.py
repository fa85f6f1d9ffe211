"""Pure functions that convert between OpenAI's JSON and the proto."""
