"""Converts a GGUF file to a checkpoint of safetensors. The entry point is `convert.py`."""
