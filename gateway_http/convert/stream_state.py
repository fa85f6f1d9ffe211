"""The state that streams of chat and of text completions have in common."""

from typing import Generic, TypeVar

from msgspec import UNSET, UnsetType

from chatrpc.v1 import chat_pb2, completion_pb2
from gateway_http.convert import chat_completions
from gateway_http.protocol.response import Usage
from gateway_http.protocol.sampling import StreamOptions

Chunk = TypeVar("Chunk", chat_pb2.ChatCompletionChunk, completion_pb2.CompletionChunk)


class StreamState(Generic[Chunk]):
    """The identity and the usage of a streamed completion, collected from its chunks.

    Attributes:
        head: The service's first chunk; empty before it arrives.
        id: The id of the completion.
        created: The time at which it was created, in seconds since 1970.
        fingerprint: The `system_fingerprint`, if there is one.
        model: The name of the model for clients.
    """

    def __init__(self, options: StreamOptions | None, head: Chunk) -> None:
        options = options or StreamOptions()
        self.head: Chunk = head
        self.id = self.model = ""
        self.created = 0
        self.fingerprint: str | UnsetType = UNSET
        self._has_usage = bool(options.include_usage)
        self._has_running_usage = self._has_usage and bool(options.continuous_usage_stats)
        self._usage = chat_pb2.Usage()

    def add(self, chunk: Chunk, model: str) -> None:
        """Add the service's next chunk. Only the `model` of the first chunk is used."""
        if chunk.id:
            self.head, self.model, self.id = chunk, model, chunk.id
            self.created = chunk.create_time.seconds
            self.fingerprint = chunk.system_fingerprint or UNSET
        if chunk.HasField("usage"):
            self._usage = chunk.usage
        elif self._has_usage:
            self._usage.completion_tokens += sum([delta.num_tokens for delta in chunk.choices])

    @property
    def usage_so_far(self) -> Usage | UnsetType | None:
        """The usage in a chunk with choices: null or left out unless it was requested in each."""
        if self._has_running_usage:
            return chat_completions.usage(self._usage)
        return None if self._has_usage else UNSET

    @property
    def final_usage(self) -> Usage | None:
        """The usage in a chunk of its own at the end; None if it was not requested."""
        return chat_completions.usage(self._usage) if self._has_usage else None
