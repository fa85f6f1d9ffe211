"""Which calls should meet the same replica: those of a session, or those that begin alike."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from chatrpc.v1 import chat_pb2, completion_pb2

Affinity = Literal["session", "prefix"]
Params = chat_pb2.ChatCompletionParams | completion_pb2.CompletionParams

SESSION_HEADER = "x-session-id"


@dataclass(frozen=True)
class Session:
    """Calls of one session, by what is there first: a header, the prompt's cache key, the user."""

    def of(self, headers: Mapping[str, str], params: Any) -> str | None:
        """What calls have in common that belong together; None: nothing, any replica will do."""
        key = headers.get(SESSION_HEADER)
        if not key and isinstance(params, chat_pb2.ChatCompletionParams):
            key = params.prompt_cache_key
        if not key and isinstance(params, Params):
            key = params.user
        return _digest([key]) if key else None


@dataclass(frozen=True)
class Prefix:
    """Calls whose prompts begin alike: the replica that has had one has its beginning cached."""

    num_chars: int = 1024

    def of(
        self,
        headers: Mapping[str, str],  # noqa: ARG002  # as `Session` is asked
        params: Any,
    ) -> str | None:
        """As `Session.of`."""
        if not isinstance(params, Params):
            return None
        return _digest([params.cache_salt, *_first(_texts(params), self.num_chars)])


def _texts(params: Params) -> Iterator[str]:
    """The prompt, in the order in which the model is going to read it."""
    if isinstance(params, chat_pb2.ChatCompletionParams):
        for tool in params.tools:  # templates put them before everything else
            yield tool.function.name
            yield tool.function.parameters_json_schema
        for message in params.messages:
            yield f"<{message.role}>"
            for part in message.content:
                yield part.text
    elif params.prompts:
        prompt = params.prompts[0]
        yield prompt.text
        for token_id in prompt.token_ids.ids:
            yield f" {token_id}"


def _first(texts: Iterable[str], num_chars: int) -> Iterator[str]:
    """The texts as far as the first `num_chars` of them all, and not read beyond."""
    for text in texts:
        yield text[:num_chars]
        num_chars -= len(text)
        if num_chars <= 0:
            return


def _digest(texts: Iterable[str]) -> str:
    """A caller's words have no place in metadata, nor any length in it."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode(errors="surrogatepass"))
    return digest.hexdigest()[:32]
