"""Converts numbers of tokens to a protobuf message."""

from chatrpc.v1 import chat_pb2
from service.domain.backend import TokenUsage


def usage(reported: TokenUsage) -> chat_pb2.Usage:
    """Return the usage that a remote backend reports."""
    return chat_pb2.Usage(
        prompt_tokens=reported.num_prompt_tokens,
        completion_tokens=reported.num_generated_tokens,
        cached_prompt_tokens=reported.num_cached_tokens,
        reasoning_tokens=reported.num_reasoning_tokens,
    )
