"""Decodes the options that chat and text completions share: protobuf to the domain."""

from dataclasses import replace

from chatrpc.v1 import chat_pb2, completion_pb2, decision_service_pb2
from chatrpc.v1.limits import LIMITS
from service.domain.backend import ModelSpec
from service.domain.engine import Caller
from service.errors import InvalidField

_LOGPROBS = LIMITS["ChatCompletionParams.top_logprobs"]  # the other fields have the same limits


def priority(
    params: chat_pb2.ChatCompletionParams
    | completion_pb2.CompletionParams
    | decision_service_pb2.CreateDecisionRequest,
    caller: Caller,
) -> int:
    """Return the priority of a request.

    Raises:
        InvalidField: The priority is lower (more urgent) than the caller may set.
    """
    if not params.HasField("priority"):
        return caller.default_priority
    if params.priority < caller.min_priority:
        raise InvalidField(
            "priority",
            f"This API key may not set a priority below {caller.min_priority}, such as "
            f"{params.priority}.",
        )
    return params.priority


def check_alternatives(name: str, count: int, spec: ModelSpec) -> None:
    """Check the number of alternatives to each token that the field `name` asks for.

    Raises:
        InvalidField: There are too many.
    """
    limits = replace(_LOGPROBS, maximum=spec.most_logprobs(int(_LOGPROBS.maximum)))
    if not limits.allow(count):
        raise InvalidField(name, f"must be {limits.range}, not {count}.")


def cache_salt(salt: str) -> str:
    max_size = LIMITS["ChatCompletionParams.cache_salt"].max_size
    if len(salt) > max_size:
        raise InvalidField("cache_salt", f"A cache salt has at most {max_size} characters.")
    return salt
