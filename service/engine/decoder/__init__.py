"""The native decoder: our own implementation of the models with Llama's architecture."""
