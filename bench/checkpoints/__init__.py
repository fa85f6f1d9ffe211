"""Writes the checkpoints of a run: random ones, and those in the formats that peers load."""
