"""The engine `vllm`: vLLM's `AsyncLLM` in this process, whose core is a process of its own."""
