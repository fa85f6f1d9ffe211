"""Decodes the options that chat and text completions share: protobuf to the domain."""

from chatrpc.v1 import chat_pb2, completion_pb2
from chatrpc.v1.limits import LIMITS, Limits
from service.domain.backend import ModelSpec
from service.domain.engine import Caller
from service.errors import InvalidField


def priority(
    params: chat_pb2.ChatCompletionParams | completion_pb2.CompletionParams, caller: Caller
) -> int:
    """Return the priority of a request. The default is 0, or the caller's lowest if that is higher.

    Raises:
        InvalidField: The priority is lower (more urgent) than the caller may set.
    """
    if not params.HasField("priority"):
        return max(0, caller.min_priority)
    if params.priority < caller.min_priority:
        raise InvalidField(
            "priority",
            f"This API key may not set a priority below {caller.min_priority}, such as "
            f"{params.priority}.",
        )
    return params.priority


def max_alternatives(spec: ModelSpec) -> int:
    """Return the maximum number of alternatives to each token with which a model responds."""
    most = int(LIMITS["ChatCompletionParams.top_logprobs"].maximum)
    return most if spec.max_logprobs is None else min(most, spec.max_logprobs)


def check_alternatives(name: str, count: int, spec: ModelSpec) -> None:
    """Check the number of alternatives to each token that the field `name` asks for.

    Raises:
        InvalidField: There are too many.
    """
    limits = Limits(minimum=0, maximum=max_alternatives(spec))
    if not limits.allow(count):
        raise InvalidField(name, f"must be {limits.range}, not {count}.")


def cache_salt(salt: str) -> str:
    max_size = LIMITS["ChatCompletionParams.cache_salt"].max_size
    if len(salt) > max_size:
        raise InvalidField("cache_salt", f"A cache salt has at most {max_size} characters.")
    return salt
