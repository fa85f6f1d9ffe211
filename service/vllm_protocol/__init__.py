"""vLLM's token-level gRPC protocol: the service `vllm.grpc.engine.VllmEngine`.

Its clients send token ids and receive token ids, so they have a tokenizer of their own. The protos
are those of the package smg-grpc-proto.
"""
