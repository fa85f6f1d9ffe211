"""The requests of a load and the records of their responses, on any wire."""

from dataclasses import dataclass, field, replace
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Request:
    """A chat completion: greedy, streamed, of exactly `num_tokens` tokens."""

    messages: tuple[Message, ...]
    num_tokens: int

    def with_turn(self, answer: str, question: str) -> "Request":
        """Return the conversation's next turn, which contains all of this one."""
        turns = Message("assistant", answer), Message("user", question)
        return replace(self, messages=(*self.messages, *turns))


def ask(text: str, num_tokens: int) -> Request:
    return Request((Message("user", text),), num_tokens)


@dataclass(slots=True)
class Transcript:
    """The raw record of one request: when it was due, and what arrived when.

    The pieces are decoded later, since the client shares its cores with the measured server. Times
    are in seconds of `time.perf_counter`.
    """

    request: Request
    due_s: float = 0.0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A decoded transcript. Token counts come from the server's usage."""

    due_s: float
    arrivals_s: tuple[float, ...] = ()  # one for each delta with text, of one or more tokens
    text: str = ""
    num_requested: int = 0
    num_output_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    error: str | None = None

    @property
    def fault(self) -> str | None:
        """The reason why this response is not as requested, or None if it is."""
        if self.error is not None:
            return self.error
        if self.num_output_tokens != self.num_requested:
            return f"{self.num_output_tokens} tokens instead of {self.num_requested}"
        if not self.arrivals_s:
            return "no text"
        return None


class Client(Protocol):
    """A client of a server over one wire."""

    async def send(self, transcript: Transcript) -> None:
        """Send the transcript's request, and record the response until the end of the stream.

        An error of this request is recorded in the transcript.
        """
        ...

    def read(self, transcript: Transcript) -> Record: ...

    async def close(self) -> None: ...
