"""The local chat backend: prompts to engine requests, and the engine's tokens to text deltas."""
