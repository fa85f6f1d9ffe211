"""Keys that send calls of one session, or with one prompt prefix, to the same replica."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from google.protobuf.message import Message

from chatrpc.v1 import chat_pb2, completion_pb2

Affinity = Literal["session", "prefix"]

SESSION_HEADER = "x-session-id"

Request = TypeVar("Request", bound=Message)


@dataclass(frozen=True)
class AffinityFields(Generic[Request]):
    """The parts of an RPC's request by which its replica may be chosen.

    Attributes:
        session: Returns the session that a request names; "" for none.
        prompt: Yields the texts of its prompt, in the order in which the model reads them.
        cache_salt: Returns the salt of a request; "" for none. Only requests with the same salt
            share cached prefixes.
    """

    session: Callable[[Request], str]
    prompt: Callable[[Request], Iterator[str]]
    cache_salt: Callable[[Request], str]


@dataclass(frozen=True)
class SessionAffinity:
    """Makes one key for each session, from the header, else the prompt cache key, else the user."""

    def key(
        self, session_id: str, fields: AffinityFields[Request] | None, request: Request
    ) -> str | None:
        """Return the key of a call, or None if any replica can take it.

        Args:
            session_id: The session that the HTTP request's header names; "" for none.
            fields: The parts of `request` that are used; None if the RPC has none.
        """
        session = session_id or ("" if fields is None else fields.session(request))
        return _digest([session]) if session else None


@dataclass(frozen=True)
class PrefixAffinity:
    """Makes one key for each prompt prefix. A replica that has computed a prefix has it cached."""

    num_chars: int = 1024

    def key(
        self,
        session_id: str,  # noqa: ARG002  # the same signature as `SessionAffinity.key`
        fields: AffinityFields[Request] | None,
        request: Request,
    ) -> str | None:
        """Return the key of a call, or None if it has no prompt."""
        if fields is None:
            return None
        prefix = _texts_until(fields.prompt(request), self.num_chars)
        return _digest([fields.cache_salt(request), *prefix])


def _chat_session(request: Any) -> str:
    params: chat_pb2.ChatCompletionParams = request.params
    return params.prompt_cache_key or params.user


def _chat_prompt(request: Any) -> Iterator[str]:
    params: chat_pb2.ChatCompletionParams = request.params
    for tool in params.tools:  # templates put them before the messages
        yield tool.function.name
        yield tool.function.parameters_json_schema
    yield from _messages(params.messages)


def _messages(messages: Iterable[chat_pb2.ChatMessage]) -> Iterator[str]:
    for message in messages:
        yield f"<{message.role}>"
        for part in message.content:
            yield part.text


def _completion_session(request: Any) -> str:
    params: completion_pb2.CompletionParams = request.params
    return params.user


def _completion_prompt(request: Any) -> Iterator[str]:
    params: completion_pb2.CompletionParams = request.params
    if params.prompts:
        prompt = params.prompts[0]
        yield prompt.text
        for token_id in prompt.token_ids.ids:
            yield f" {token_id}"


def _cache_salt(request: Any) -> str:
    return str(request.params.cache_salt)


CHAT: AffinityFields[Any] = AffinityFields(_chat_session, _chat_prompt, _cache_salt)
COMPLETION: AffinityFields[Any] = AffinityFields(
    _completion_session, _completion_prompt, _cache_salt
)


DECISION: AffinityFields[Any] = AffinityFields(
    lambda request: str(request.prompt_cache_key),
    lambda request: _messages(request.messages),
    lambda request: str(request.cache_salt),
)


def _texts_until(texts: Iterable[str], num_chars: int) -> Iterator[str]:
    """Yield the first `num_chars` characters of all texts together. Does not read further texts."""
    for text in texts:
        yield text[:num_chars]
        num_chars -= len(text)
        if num_chars <= 0:
            return


def _digest(texts: Iterable[str]) -> str:
    """Return a hash of the texts. It is short and ASCII, as metadata must be."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode(errors="surrogatepass"))
    return digest.hexdigest()[:32]
