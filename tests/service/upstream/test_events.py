"""Event streams: any bytes, split anywhere, end with events or an error."""

from contextlib import suppress

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.backend import Prompt
from service.errors import ChatrpcError, UpstreamInvalidResponse
from service.rpc.encode.chat import ChatEncoder
from service.rpc.encode.completion import CompletionEncoder
from service.upstream import events
from service.upstream.dialects import Dialect, Names
from service.upstream.failures import AttemptFailed, Failures
from service.upstream.responses import ResponseReader
from service.upstream.wire import Completion, decoded
from tests.fakes import openai_upstream as fake
from tests.service.upstream.serving import chat, completion
from tests.support.grpc_server import CARD


class Pieces(httpx.AsyncByteStream):
    """A body that comes in pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self):  # type: ignore[no-untyped-def]
        for piece in self._pieces:
            yield piece


def response(*pieces: bytes, kind: str = "text/event-stream") -> httpx.Response:
    return httpx.Response(200, headers={"content-type": kind}, stream=Pieces(list(pieces)))


async def data_of(*pieces: bytes) -> list[str]:
    return [data async for data in events.event_data(response(*pieces))]


async def test_comments_and_other_fields_are_left_out() -> None:
    stream = (
        b": ping\n\nevent: x\ndata: 1\nid: 5\n\nretry: 9\n\ndata:2\ndata: 3\r\n\r\ndata: [DONE]\n\n"
    )
    assert await data_of(stream) == ["1", "2\n3", "[DONE]"]


async def test_line_separators_of_unicode_end_no_line() -> None:
    text = "a\u2028b\x85c\x0bd"
    assert await data_of(f"data: {text}\n\n".encode()) == [text]


async def test_other_content_is_rejected() -> None:
    with pytest.raises(UpstreamInvalidResponse):
        await anext(events.event_data(response(b"{}", kind="application/json")))


async def test_event_that_is_too_large_is_rejected() -> None:
    piece = b"x" * (1 << 20)
    stream = events.event_data(response(*([piece] * 9)))
    with pytest.raises(UpstreamInvalidResponse, match="too large"):
        await anext(stream)


async def test_comments_without_end_are_rejected() -> None:
    stream = events.event_data(response(*([b": ping\n\n" * 100_000] * 11)))
    with pytest.raises(UpstreamInvalidResponse, match="too large"):
        await anext(stream)


@given(st.data())
async def test_events_do_not_depend_on_how_they_are_split(data: st.DataObject) -> None:
    texts = data.draw(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1))
    )
    stream = b"".join(f"data: {text}\n\n".encode() for text in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    pieces = [stream[i:j] for i, j in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert await data_of(*pieces) == texts


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *(
                        "choices",
                        "delta",
                        "message",
                        "content",
                        "index",
                        "finish_reason",
                        "logprobs",
                    ),
                    *("tool_calls", "function", "arguments", "usage", "completion_tokens", "error"),
                    *("prompt_logprobs", "token_ids", "tokens", "token_logprobs", "top_logprobs"),
                    *("text", "reasoning", "token", "logprob", "bytes", "text_offset", "code"),
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
CHUNK = st.one_of(
    JSON.map(fake.event),
    st.fixed_dictionaries({"choices": st.lists(JSON, max_size=3)}).map(fake.event),
    st.sampled_from(
        [*map(fake.event, [*fake.chat_chunks(["a"]), fake.text_chunk("b", "stop"), "[DONE]"])]
    ),
    st.binary(max_size=40),
    st.sampled_from(
        [
            b'data: {"choices":[{"text":"\\ud800","delta":{"content":"\\udc00"}}]}\n\n',
            b'data: {"choices":[{"logprobs":{"content":[{"token":"x","logprob":-1e999}]}}]}\n\n',
            b"data: " + b"[" * 5000 + b"\n\n",
        ]
    ),
)


@given(st.lists(CHUNK, max_size=6), st.booleans())
async def test_any_stream_ends_with_deltas_or_a_documented_error(
    chunks: list[bytes], is_chat: bool
) -> None:
    with suppress(ChatrpcError, AttemptFailed):
        await read_all(response(*chunks), is_chat=is_chat)


async def read_all(body: httpx.Response, *, is_chat: bool) -> None:
    """Read a response and encode its deltas, as a call does."""
    reader: ResponseReader
    encoder: ChatEncoder | CompletionEncoder
    if is_chat:
        conversation = chat(num_logprobs=2, returns_token_ids=True)
        encoder = ChatEncoder(CARD, conversation, Prompt())
        reader = ResponseReader(conversation)
    else:
        text = completion("a", num_logprobs=2, returns_token_ids=True)
        encoder = CompletionEncoder(CARD, text, [Prompt()])
        reader = ResponseReader(text)
    failures = Failures(Names(Dialect.VLLM), "chat completions", "m", "messages")
    async for data in events.event_data(body):
        if data == events.DONE:
            break
        piece = decoded(data, Completion)
        if piece.error:
            raise failures.of_event(piece.error)
        for delta in reader.push(piece):
            assert delta.finish_reason is None
            encoder.chunk(delta)
    last = encoder.chunk(reader.finish())
    assert last is not None
    assert last.choices[0].finish_reason
