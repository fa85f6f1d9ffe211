"""One lean decoder for the families of models that share Llama's anatomy."""
