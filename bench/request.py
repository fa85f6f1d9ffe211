"""What a load asks, whatever the wire, and what came back."""

from dataclasses import dataclass, field, replace
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Request:
    """One chat completion: greedy, streamed, of exactly `num_tokens` tokens."""

    messages: tuple[Message, ...]
    num_tokens: int

    def answered(self, answer: str, question: str) -> "Request":
        """The conversation's next turn, which resends all of it."""
        turns = Message("assistant", answer), Message("user", question)
        return replace(self, messages=(*self.messages, *turns))


def ask(text: str, num_tokens: int) -> Request:
    return Request((Message("user", text),), num_tokens)


@dataclass(slots=True)
class Transcript:
    """What a client notes of one request while it runs: when it was due, and what arrived when.

    Reading the pieces is left for later: the client shares its cores with the server it measures.
    Times are `time.perf_counter`'s, in seconds.
    """

    request: Request
    due_s: float = 0.0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A transcript that has been read. Token counts are those of the server's own usage."""

    due_s: float
    arrivals_s: tuple[float, ...] = ()  # of each delta with text, however many tokens it holds
    text: str = ""
    num_requested: int = 0
    num_output_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    error: str | None = None

    @property
    def fault(self) -> str | None:
        """Why this answer is not the one that was asked for."""
        if self.error is not None:
            return self.error
        if self.num_output_tokens != self.num_requested:
            return f"{self.num_output_tokens} tokens instead of {self.num_requested}"
        if not self.arrivals_s:
            return "no text"
        return None


class Client(Protocol):
    """One way to reach a server."""

    async def send(self, transcript: Transcript) -> None:
        """Send the transcript's request and note what arrives, to the end of the stream.

        Whatever goes wrong with this one request is noted as its error.
        """
        ...

    def read(self, transcript: Transcript) -> Record: ...

    async def close(self) -> None: ...
