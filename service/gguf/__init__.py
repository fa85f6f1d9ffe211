"""A GGUF file to a checkpoint of safetensors, tensor by tensor: `convert.py`."""
