"""Scripts of the fake service, a tool and a type, that the tests of several clients use."""

import grpc
from pydantic import BaseModel

from chatrpc.v1 import chat_pb2
from tests.fakes.chat_service import Admit, Delta, Fail, Finish, Step, reasoning, tool_call

CALL: list[Step] = [
    Admit(),
    reasoning("The user asks "),
    reasoning("for the weather."),
    tool_call("", "call_1", "weather"),
    tool_call('{"city":'),
    tool_call(' "Oslo"}'),
    Finish(chat_pb2.FINISH_REASON_TOOL_CALLS),
]
"""A tool call after reasoning, in deltas."""

RAIN: list[Step] = [Admit(), Delta("It rains"), Delta(" in Oslo."), Finish()]
"""The response to the result of the tool call."""

CITY: list[Step] = [Admit(), Delta('{"city": '), Delta('"Oslo"}'), Finish()]
"""A structured output."""

CUT: list[Step] = [Admit(), Delta("Hello"), Fail(grpc.StatusCode.INTERNAL, "Lost.")]
"""A response that an error ends."""

FULL = Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many.", "QUOTA", retry_after_s=0.01)
"""A rejection with status 429 and a short `Retry-After`."""

TOO_HOT = Fail(
    grpc.StatusCode.INVALID_ARGUMENT, "Too hot.", "INVALID_FIELD", "sampling.temperature"
)
"""A rejection with status 400 that names a field."""


class City(BaseModel):
    """A place, as `CITY` describes it."""

    city: str


def weather(city: str) -> str:
    """Report the weather of a city."""
    return f"Rain in {city}."
