"""Makes a checkpoint of a GGUF file. The entry point is `convert.py`."""
