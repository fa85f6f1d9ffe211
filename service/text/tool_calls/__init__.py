"""Calls of functions: how models write them, shown in prompts, forced and read."""
