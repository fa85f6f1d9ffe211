"""Decodes the options that several requests share: protobuf to the domain."""

from dataclasses import replace
from typing import Any, Protocol

from chatrpc.v1.limits import LIMITS
from service.domain.backend import ModelSpec
from service.domain.engine import Caller
from service.errors import InvalidField

_LOGPROBS = LIMITS["ChatCompletionParams.top_logprobs"]  # the other fields have the same limits


class WithPriority(Protocol):
    """A proto with the optional field `priority`."""

    @property
    def priority(self) -> int: ...

    def HasField(self, field_name: Any, /) -> bool: ...  # noqa: N802  # protobuf's name


def priority(params: WithPriority, caller: Caller) -> int:
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
