"""OpenAI's JSON as typed structs: what a client may send, and what it gets back."""
