"""Responses of upstreams as text deltas, and what is sent to which upstream."""

import asyncio
import time
from contextlib import aclosing
from typing import Any

import pytest

from service.domain.backend import DecodedLogprob, TextDelta, TokenUsage, ToolCallDelta
from service.domain.chat import Tool, ToolMode
from service.domain.engine import Caller, FinishReason
from service.errors import (
    ChatrpcError,
    ContextLengthExceeded,
    DeadlinePassed,
    InvalidField,
    QueueFull,
    UnsupportedMethod,
    UpstreamAccessDenied,
    UpstreamDown,
    UpstreamInvalidResponse,
    UpstreamRateLimited,
)
from service.upstream import backend, discovery
from tests.fakes import openai_upstream as fake
from tests.fakes.openai_upstream import Received, Send, chat_chunk, text_chunk
from tests.fakes.wait import failsafe, until
from tests.service.upstream.serving import call, chat, completion, joined, sampling, serving


async def deltas_of(*chunks: Any, request: Any = None, path: str = "chat") -> list[TextDelta]:
    """Return the deltas of a stream of chunks."""
    async with fake.running() as upstream, serving(upstream.url) as served:
        getattr(upstream, path)(fake.streams(*chunks))
        return await served.deltas(request)


async def error_of(handler: fake.Handler, request: Any = None) -> ChatrpcError:
    """Return the error of a request whose response `handler` sends."""
    async with fake.running() as upstream, serving(upstream.url) as served:
        upstream.chat(handler)
        upstream.completions(handler)
        with pytest.raises(ChatrpcError) as caught:
            await served.deltas(request)
        await until(lambda: upstream.num_running == 0)
        return caught.value


async def test_stream_is_converted_to_deltas() -> None:
    deltas = await deltas_of(*fake.chat_chunks(["Hi", "!"]), fake.usage_chunk())
    assert [delta.text for delta in deltas] == ["Hi", "!", ""]
    assert [delta.num_tokens for delta in deltas] == [1, 1, 1]
    last = deltas[-1]
    assert (last.finish_reason, last.usage) == (FinishReason.STOP, TokenUsage(7, 3, 4, 1))
    timings = last.timings
    assert timings is not None
    assert timings.num_tokens == 3
    times = (timings.queued_s, timings.scheduled_s, timings.first_token_s, timings.last_token_s)
    assert list(times) == sorted(time or 0 for time in times)


async def test_running_usage_counts_the_tokens_of_a_chunk() -> None:
    deltas = await deltas_of(
        chat_chunk({"content": "Hi there"})
        | {"usage": {"prompt_tokens": 7, "completion_tokens": 5}},
        chat_chunk({"content": "!"}) | {"usage": {"prompt_tokens": 7, "completion_tokens": 6}},
        chat_chunk(finish_reason="length"),
        fake.usage_chunk(prompt_tokens=7, completion_tokens=6),
    )
    assert [delta.num_tokens for delta in deltas] == [5, 1, 0]
    assert deltas[0].usage == TokenUsage(7, 5)
    assert deltas[-1].finish_reason is FinishReason.LENGTH


async def test_reasoning_has_both_names() -> None:
    deltas = await deltas_of(
        chat_chunk({"reasoning": "a"}),
        chat_chunk({"reasoning_content": "b"}),
        chat_chunk({"content": "c"}, "stop"),
    )
    assert [delta.reasoning for delta in deltas] == ["a", "b", ""]
    assert joined(deltas) == "c"


async def test_tool_calls_are_joined_by_their_index() -> None:
    def piece(index: int | None, arguments: Any, **fields: Any) -> dict[str, Any]:
        given = {"function": {"arguments": arguments, **fields.pop("function", {})}, **fields}
        return chat_chunk({"tool_calls": [given if index is None else {"index": index, **given}]})

    deltas = await deltas_of(
        piece(0, "", id="c1", type="function", function={"name": "f"}),
        piece(0, '{"a":'),
        piece(0, "1}", id="c1"),  # some services repeat the id
        piece(None, {"b": 2}, id="c2", function={"name": "g"}),  # and some send no index
        chat_chunk(finish_reason="stop"),
    )
    assert [call for delta in deltas for call in delta.tool_calls] == [
        ToolCallDelta(0, "c1", "f"),
        ToolCallDelta(0, arguments='{"a":'),
        ToolCallDelta(0, arguments="1}"),
        ToolCallDelta(1, "c2", "g", '{"b":2}'),
    ]
    assert deltas[-1].finish_reason is FinishReason.TOOL_CALLS


async def test_call_of_a_named_tool_ends_with_stop() -> None:
    given = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{}"}}
    [delta] = await deltas_of(
        chat_chunk({"tool_calls": [given]}, "stop"),
        request=chat(tools=(Tool("f", "", ""),), tool_mode=ToolMode.NAMED),
    )
    assert delta.finish_reason is FinishReason.STOP


async def test_logprobs_of_chats_have_bytes_and_alternatives() -> None:
    top = [
        {"token": "a", "logprob": -0.1, "bytes": [97]},
        {"token": "b", "logprob": -2.5, "bytes": None},
        {"token": "c", "logprob": -3.5, "bytes": [99]},
    ]
    entry = {"token": "\ufffd", "logprob": -0.5, "bytes": [0xE2, 0x82], "top_logprobs": top}
    deltas = await deltas_of(
        chat_chunk({"content": "a"}, "stop", logprobs={"content": [entry]}),
        request=chat(num_logprobs=2),
    )
    alternatives = DecodedLogprob(b"a", -0.1), DecodedLogprob(b"b", -2.5)
    assert deltas[0].logprobs == (DecodedLogprob(b"\xe2\x82", -0.5, None, alternatives),)


async def test_logprobs_of_text_completions_have_offsets() -> None:
    logprobs = {
        "tokens": [" a", "b"],
        "token_logprobs": [-0.5, -1],
        "top_logprobs": [{" x": -2.0, " a": -0.5}, None],
        "text_offset": [0, 2],
    }
    request = completion("Say", num_logprobs=1, is_echoed=False)
    chunk = text_chunk(" ab", "length", logprobs=logprobs, token_ids=[5, 6])
    [delta] = await deltas_of(chunk, request=request, path="completions")
    assert delta.logprobs == (
        DecodedLogprob(b" a", -0.5, 5, (DecodedLogprob(b" a", -0.5),)),
        DecodedLogprob(b"b", -1.0, 6),
    )
    assert (delta.text_offsets, delta.token_ids) == ((0, 2), (5, 6))


async def test_choices_of_prompts_are_numbered() -> None:
    chunks = [text_chunk(str(i), "stop") for i in range(4)]
    for i, chunk in enumerate(chunks):
        chunk["choices"][0]["index"] = i
    deltas = await deltas_of(*chunks, request=completion("a", "b", n=2), path="completions")
    found = [(delta.text, delta.prompt_index, delta.index) for delta in deltas]
    assert found == [("0", 0, 0), ("1", 0, 1), ("2", 1, 0), ("3", 1, 1)]
    assert all(delta.finish_reason is FinishReason.STOP for delta in deltas)


async def test_echo_of_the_upstream_is_split_into_prompt_and_output() -> None:
    logprobs = {
        "tokens": ["Say", " it", "!"],
        "token_logprobs": [None, -0.5, -1.5],
        "top_logprobs": [None, {" it": -0.5}, {"!": -1.5}],
        "text_offset": [0, 3, 6],
    }
    choice = {"index": 0, "text": "Say it!", "finish_reason": "length", "logprobs": logprobs}
    whole = {"model": fake.MODEL, "choices": [choice], "usage": fake.USAGE}
    for prompt in ("Say it", (8, 9)):
        request = completion(
            prompt,
            is_echoed=True,
            num_logprobs=1,
            num_prompt_logprobs=1,
        )
        async with fake.running() as upstream, serving(upstream.url) as served:
            upstream.completions(fake.replies(fake.response(200, whole)))
            generation = await served.prepare(request, call())
            [delta] = await served.deltas(request)
        assert generation.prompts[0].text == ""
        assert delta.text == "Say it!"
        assert [each.token for each in delta.prompt_logprobs] == [b"Say", b" it"]
        assert [each.token for each in delta.logprobs] == [b"!"]
        assert delta.text_offsets == (0, 3, 6)


async def test_prompt_logprobs_and_token_ids_come_with_a_whole_response() -> None:
    choice = {"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop", "token_ids": [3]}
    whole = {
        "model": fake.MODEL,
        "choices": [choice],
        "prompt_token_ids": [1, 2],
        "prompt_logprobs": [
            None,
            {
                "2": {"logprob": -3.0, "rank": 9, "decoded_token": "b"},
                "7": {"logprob": -0.1, "rank": 1, "decoded_token": "c"},
            },
        ],
        "usage": fake.USAGE,
    }
    async with fake.running() as upstream, serving(upstream.url) as served:
        upstream.chat(fake.replies(fake.response(200, whole)))
        [delta] = await served.deltas(chat(num_prompt_logprobs=1, returns_token_ids=True))
        assert "stream" not in upstream.generations[0]
    assert delta.prompt_logprobs == (
        DecodedLogprob(b"", None, 1),
        DecodedLogprob(b"b", -3.0, 2, (DecodedLogprob(b"c", -0.1, 7),)),
    )
    assert (delta.prompt_token_ids, delta.token_ids, delta.text) == ((1, 2), (3,), "Hi")


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("function_call", FinishReason.TOOL_CALLS),
        ("eos_token", FinishReason.STOP),  # unknown
    ],
)
async def test_finish_reason_is_mapped(reason: str, expected: FinishReason) -> None:
    [delta] = await deltas_of(chat_chunk({"content": "x"}, reason))
    assert delta.finish_reason is expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"stop_reason": "END"}, "END"),
        ({"stop_reason": 5}, 5),
        ({"matched_stop": 5}, 5),
        ({"matched_stop": 2}, None),  # the end-of-sequence token, in SGLang
        ({}, None),
    ],
)
async def test_matched_stop_is_one_of_the_request(fields: dict[str, Any], expected: Any) -> None:
    request = chat(sampling=sampling(stop=("END",), stop_token_ids=frozenset({5})))
    [delta] = await deltas_of(chat_chunk({"content": "x"}, "stop", **fields), request=request)
    assert delta.matched_stop == expected


async def test_unknown_fields_and_parts_are_dropped() -> None:
    content = [{"type": "text", "text": "Hi"}, {"type": "hologram", "data": 1}, 7, " you"]
    chunk = chat_chunk({"content": content, "mood": "good"}, "stop", extra={"a": [1]})
    deltas = await deltas_of(chunk | {"timings": {"x": 1}}, {"choices": None, "ping": 1})
    assert joined(deltas) == "Hi you"


async def test_refusal_is_text() -> None:
    assert joined(await deltas_of(chat_chunk({"refusal": "No."}, "stop"))) == "No."


async def test_stream_without_done_is_complete_if_all_choices_have_ended() -> None:
    async def without_done(_: Received, send: Send) -> None:
        await fake.send_stream(send, fake.chat_chunks(["Hi"]), has_end=False)
        await send(fake.LAST_CHUNK)

    async with fake.running() as upstream, serving(upstream.url) as served:
        upstream.chat(without_done)
        assert await served.text() == "Hi"


def pinging(*chunks: Any) -> fake.Handler:
    """Return a handler that sends the chunks, and then only comments and empty chunks."""

    async def handle(_: Received, send: Send) -> None:
        await fake.send_stream(send, chunks, has_end=False)
        while True:
            await send(fake.http_chunk(b": ping\n\n" + fake.event({"choices": []})))
            await asyncio.sleep(0.001)

    return handle


async def test_complete_response_does_not_wait_for_the_end_of_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend, "_USAGE_TIMEOUT_S", 1000.0)
    async with fake.running() as upstream, serving(upstream.url) as served, failsafe():
        upstream.chat(pinging(*fake.chat_chunks(["Hi"]), fake.usage_chunk()))
        *_, last = await served.deltas()
        assert (last.finish_reason, last.usage) == (FinishReason.STOP, TokenUsage(7, 3, 4, 1))
        await until(lambda: upstream.num_running == 0)


async def test_usage_is_awaited_for_a_short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_USAGE_TIMEOUT_S", 0.01)
    async with fake.running() as upstream, serving(upstream.url) as served, failsafe():
        upstream.chat(pinging(*fake.chat_chunks(["Hi"])))
        *_, last = await served.deltas()
        assert (last.finish_reason, last.usage) == (FinishReason.STOP, None)
        await until(lambda: upstream.num_running == 0)
        assert not any(member.is_down for member in served.runtime._pool.members)


async def test_numbers_of_a_running_choice_do_not_end_the_response() -> None:
    first, second = chat_chunk({"content": "a"}, "stop"), chat_chunk({"content": "b"}, "stop")
    second["choices"][0]["index"] = 1
    deltas = await deltas_of(first, fake.usage_chunk(), second, request=chat(n=2))
    assert joined(deltas) == "ab"


async def test_connection_is_used_again() -> None:
    async with fake.running() as upstream, serving(upstream.url) as served:
        for _ in range(3):
            assert await served.text() == "Hi!"
        assert upstream.connections == 1


# Errors


@pytest.mark.parametrize(
    ("status", "body", "kind", "field"),
    [
        (
            400,
            {"error": {"message": "bad top_p", "param": "top_p"}},
            InvalidField,
            "sampling.top_p",
        ),
        (400, {"error": {"message": "bad", "param": None}}, InvalidField, "messages"),
        (422, {"detail": [{"loc": ["body"]}]}, InvalidField, "messages"),
        (400, {"object": "error", "message": "m", "param": "n"}, InvalidField, "sampling.n"),
        (413, b"<html>too large</html>", InvalidField, "messages"),
        (
            400,
            {
                "error": {
                    "message": "This model's maximum context length is 50 tokens. However, your "
                    "messages resulted in 61 tokens.",
                    "code": "context_length_exceeded",
                }
            },
            ContextLengthExceeded,
            "messages",
        ),
        (
            400,
            {
                "error": {
                    "message": "the request exceeds the available context size",
                    "type": "exceed_context_size_error",
                    "n_prompt_tokens": 61,
                    "n_ctx": 50,
                }
            },
            ContextLengthExceeded,
            "messages",
        ),
    ],
)
async def test_rejection_names_our_field(
    status: int, body: Any, kind: type[InvalidField], field: str
) -> None:
    error = await error_of(fake.replies(fake.response(status, body)))
    assert type(error) is kind
    assert isinstance(error, InvalidField)
    assert error.field == field
    if isinstance(error, ContextLengthExceeded):
        assert (error.prompt_tokens, error.max_model_len) == (61, 50)


NOT_JSON = fake.response(200, b"<html>", content_type="text/html")
REDIRECT = fake.response(307, b"", location="http://127.0.0.1:1/v1/chat/completions")
LIMITED = fake.response(429, {"error": {"message": "slow down"}}, retry_after="7")
NO_MODEL = fake.response(404, {"error": {"message": "The model `x` does not exist."}})


@pytest.mark.parametrize(
    ("sent", "kind", "retry_after_s"),
    [
        (LIMITED, UpstreamRateLimited, 7.0),
        (fake.response(500, {"error": {"message": "secret"}}), UpstreamDown, 1.0),
        (fake.response(503, b"busy", retry_after="3"), UpstreamDown, 3.0),
        (fake.response(401, {"error": "Unauthorized"}), UpstreamAccessDenied, None),
        (fake.response(403, {}), UpstreamAccessDenied, None),
        (NO_MODEL, UpstreamDown, 1.0),
        (fake.response(404, {"detail": "Not Found"}), UnsupportedMethod, None),
        (REDIRECT, UpstreamInvalidResponse, None),
        (NOT_JSON, UpstreamInvalidResponse, None),
        (fake.response(204, b""), UpstreamInvalidResponse, None),
        (b"SSH-2.0-OpenSSH\r\n\r\n", UpstreamDown, 1.0),
        (b"", UpstreamDown, 1.0),
    ],
)
async def test_failed_response_has_its_error(
    sent: bytes, kind: type[ChatrpcError], retry_after_s: float | None
) -> None:
    async def handle(_: Received, send: Send) -> None:
        await send(sent)
        if not sent.startswith(b"HTTP"):
            raise ConnectionError

    error = await error_of(handle)
    assert type(error) is kind
    assert "secret" not in str(error)
    assert getattr(error, "retry_after_s", None) == retry_after_s


STREAMED_ERROR = {"error": {"message": "bad", "code": 400, "param": "temperature"}}


@pytest.mark.parametrize(
    ("chunks", "kind"),
    [
        ([{"error": {"message": "boom", "code": 500}}], UpstreamDown),
        ([{"error": "boom"}], UpstreamDown),
        ([STREAMED_ERROR], InvalidField),
        (["{not json"], UpstreamInvalidResponse),
        (['{"choices": 5}'], UpstreamInvalidResponse),
        ([chat_chunk({"content": {"a": 1}})], UpstreamInvalidResponse),
        ([chat_chunk({"content": "x"}, index=3)], UpstreamInvalidResponse),
        ([chat_chunk({"content": "x"}, "abort")], UpstreamDown),
        ([chat_chunk({"content": "half"})], UpstreamDown),
        ([chat_chunk({"content": "x" * (9 << 20)})], UpstreamInvalidResponse),
        ([], UpstreamDown),
    ],
)
async def test_failed_stream_has_its_error(chunks: list[Any], kind: type[ChatrpcError]) -> None:
    assert type(await error_of(fake.streams(*chunks))) is kind


async def test_half_a_stream_fails_after_its_tokens() -> None:
    async def half(_: Received, send: Send) -> None:
        await fake.send_stream(send, [chat_chunk({"content": "half"})], has_end=False)
        raise ConnectionError

    async with fake.running() as upstream, serving(upstream.url) as served:
        upstream.chat(half)
        generation = await served.prepare(chat(), call())
        deltas = generation.deltas()
        await anext(deltas)
        assert (await anext(deltas)).text == "half"
        with pytest.raises(UpstreamDown):
            await anext(deltas)
        assert len(upstream.requests) == 1  # nothing is repeated after the first token


async def hanging(_: Received, send: Send) -> None:
    """Send a token and then nothing more."""
    await fake.send_stream(send, [chat_chunk({"content": "Hi"})], has_end=False)
    await asyncio.Event().wait()


async def silent(_: Received, send: Send) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("handler", [hanging, silent])
async def test_silence_ends_with_an_error(handler: fake.Handler) -> None:
    async with (
        fake.running() as upstream,
        serving(upstream.url, upstream_read_timeout_s=0.05) as served,
    ):
        upstream.chat(handler)
        with pytest.raises(UpstreamDown, match="did not respond in time"):
            await served.deltas()
        await until(lambda: upstream.num_running == 0)


async def endless(_: Received, send: Send) -> None:
    """Send tokens without end."""
    await fake.send_stream(send, [chat_chunk({"content": "Hi"})], has_end=False)
    while True:
        await send(fake.http_chunk(fake.event(chat_chunk({"content": "more"}))))
        await asyncio.sleep(0)


@pytest.mark.parametrize("handler", [hanging, silent, endless])
async def test_deadline_ends_the_request_at_the_upstream(handler: fake.Handler) -> None:
    async with fake.running() as upstream, serving(upstream.url) as served:
        upstream.chat(handler)
        with pytest.raises(DeadlinePassed):
            await served.deltas(context=call(time.monotonic()))
        await until(lambda: upstream.num_running == 0)


@pytest.mark.parametrize("handler", [hanging, silent])
async def test_cancelling_ends_the_request_at_the_upstream(handler: fake.Handler) -> None:
    async with fake.running() as upstream, serving(upstream.url) as served:
        upstream.chat(handler)
        reading = asyncio.ensure_future(served.deltas())
        await until(lambda: upstream.num_running == 1)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await until(lambda: upstream.num_abandoned == 1 and upstream.num_running == 0)


async def test_closing_the_deltas_ends_the_request_at_the_upstream() -> None:
    async with fake.running() as upstream, serving(upstream.url) as served:
        upstream.chat(hanging)
        generation = await served.prepare(chat(), call())
        async with aclosing(generation.deltas()) as deltas:
            await anext(deltas)
            assert (await anext(deltas)).text == "Hi"
        await until(lambda: upstream.num_abandoned == 1 and upstream.num_running == 0)


# Several upstreams


FAILURES = {
    "503": fake.replies(fake.response(503, b"")),
    "429": fake.replies(LIMITED),
    "401": fake.replies(fake.response(401, b"")),
    "no_model": fake.replies(NO_MODEL),
    "garbage": fake.replies(NOT_JSON),
    "no_token": fake.streams(chat_chunk({"role": "assistant", "content": ""})),
    "error_event": fake.streams({"error": {"message": "boom", "code": 503}}),
}


@pytest.mark.parametrize("name", [*FAILURES])
async def test_request_without_a_token_goes_to_another_upstream(name: str) -> None:
    async with fake.running() as bad, fake.running() as good:
        bad.chat(FAILURES[name])
        async with serving(bad.url, good.url) as served:
            assert await served.text() == "Hi!"
            assert (len(bad.requests), len(good.requests)) == (1, 1)
            # The failed upstream has been put aside.
            assert await served.text() == "Hi!"
            assert (len(bad.requests), len(good.requests)) == (1, 2)
            counts = [
                (each.num_attempts, each.num_failed, each.num_failovers)
                for each in served.runtime.stats().upstreams
            ]
            assert counts == [(1, 1, 1), (2, 0, 0)]


async def test_unreachable_upstream_is_skipped() -> None:
    async with fake.running() as good:
        async with fake.running() as gone:
            pass
        async with serving(gone.url, good.url) as served:
            assert await served.text() == "Hi!"


async def test_rejected_request_is_not_sent_to_another_upstream() -> None:
    async with fake.running() as first, fake.running() as second:
        first.chat(fake.replies(fake.response(400, {"error": {"message": "bad"}})))
        async with serving(first.url, second.url) as served:
            with pytest.raises(InvalidField):
                await served.deltas()
            assert second.requests == []


async def test_request_goes_to_the_upstream_with_the_fewest_requests() -> None:
    async with fake.running() as first, fake.running() as second:
        first.chat(hanging)
        second.chat(hanging)
        async with serving(first.url, second.url) as served:
            tasks = [asyncio.ensure_future(served.deltas()) for _ in range(4)]
            await until(lambda: first.num_running + second.num_running == 4)
            assert first.num_running == second.num_running == 2
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_rate_limit_of_all_upstreams_fails_at_once_until_it_passes() -> None:
    async with fake.running() as upstream, serving(upstream.url) as served:
        upstream.chat(fake.replies(LIMITED))
        for _ in range(2):
            with pytest.raises(UpstreamRateLimited) as caught:
                await served.deltas()
            assert 0 < caught.value.retry_after_s <= 7
        assert len(upstream.requests) == 1
        assert served.runtime.stats().num_running == 0


async def test_upstream_that_is_down_is_tried_if_there_is_no_other() -> None:
    async with fake.running() as upstream, serving(upstream.url) as served:
        upstream.chat(fake.replies(fake.response(500, b"")))
        with pytest.raises(UpstreamDown):
            await served.deltas()
        del upstream.handlers["/v1/chat/completions"]
        assert await served.text() == "Hi!"


async def test_closed_idle_connection_is_no_failure() -> None:
    """The upstream closes the connection when the next request arrives."""
    async with fake.running() as upstream, serving(upstream.url) as served:
        has_closed = False

        async def close_once(request: Received, send: Send) -> None:
            nonlocal has_closed
            if not has_closed:
                has_closed = True
                raise ConnectionError
            await fake.send_stream(send, fake.chat_chunks(["Hi"]))

        upstream.chat(close_once)
        assert await served.text() == "Hi"
        assert len(upstream.requests) == 2


async def test_upstream_without_the_endpoint_is_replaced_and_not_put_aside() -> None:
    async with (
        fake.running() as unrouted,
        fake.running() as good,
        serving(unrouted.url, good.url) as served,
    ):
        unrouted.chat(fake.replies(fake.response(404, b"default backend - 404")))
        assert await served.text() == "Hi!"
        assert (len(unrouted.requests), len(good.requests)) == (1, 1)
        assert not any(member.is_down for member in served.runtime._pool.members)


async def test_request_that_makes_every_upstream_fail_leaves_the_model_available() -> None:
    async with fake.running() as upstream, serving(upstream.url) as served:
        upstream.chat(fake.replies(fake.response(500, b"")))
        with pytest.raises(UpstreamDown):
            await served.deltas()
        [member] = served.runtime._pool.members
        assert member.is_down
        assert served.runtime._pool.is_available


async def test_cookies_are_not_sent() -> None:
    async with fake.running() as upstream, serving(upstream.url) as served:
        limited = fake.response(429, b"", set_cookie="replica=1; Path=/", retry_after="0")
        upstream.chat(fake.replies(limited))
        for _ in range(2):
            with pytest.raises(UpstreamRateLimited):
                await served.deltas()
        assert ["cookie" in request.headers for request in upstream.requests] == [False, False]


async def test_response_of_another_model_is_not_used() -> None:
    """Some services answer with whatever model they have."""
    other = chat_chunk({"content": "x"}, "stop") | {"model": "another"}
    async with (
        fake.running() as swapped,
        fake.running() as good,
        serving(swapped.url, good.url) as served,
    ):
        swapped.chat(fake.streams(other))
        swapped.models = [{"id": "another"}]
        assert await served.text() == "Hi!"
        assert (len(swapped.requests), len(good.requests)) == (1, 1)


async def test_response_of_another_model_is_a_failure_of_the_only_upstream() -> None:
    other = chat_chunk({"content": "x"}, "stop") | {"model": "another"}
    async with fake.running() as upstream, serving(upstream.url) as served:
        upstream.chat(fake.streams(other))
        upstream.models = [{"id": "another"}]
        with pytest.raises(UpstreamDown, match="no longer serves the model"):
            await served.deltas()
        async with failsafe():
            await served.runtime.wait_available(is_available=False)


async def test_logprobs_of_llamacpp_text_completions_have_the_form_of_chats() -> None:
    entry = {"id": 9, "token": " a", "bytes": [32, 97], "logprob": -0.5, "top_logprobs": []}
    chunks = [text_chunk(" a", logprobs={"content": [entry]}), text_chunk("", "stop")]
    request = completion("Say", num_logprobs=1)
    first, _ = await deltas_of(*chunks, request=request, path="completions")
    assert first.logprobs == (DecodedLogprob(b" a", -0.5, 9),)
    assert first.text_offsets == (0,)


async def test_other_name_of_the_model_in_responses_is_accepted() -> None:
    versioned = chat_chunk({"content": "x"}, "stop") | {"model": f"{fake.MODEL}-2026-01-01"}
    async with fake.running() as upstream, serving(upstream.url) as served:
        upstream.chat(fake.streams(versioned))
        num_probes = upstream.num_probes
        for _ in range(2):
            assert await served.text() == "x"
        assert upstream.num_probes == num_probes + 1


async def test_accepted_names_of_the_model_are_remembered() -> None:
    names = iter(["v1", "v2", "v1", fake.MODEL, "v2"])

    async def renamed(received: Received, send: Send) -> None:
        await fake.send_stream(
            send, [chat_chunk({"content": "x"}, "stop") | {"model": next(names)}]
        )

    async with fake.running() as upstream, serving(upstream.url) as served:
        upstream.chat(renamed)
        num_probes = upstream.num_probes
        for _ in range(5):
            assert await served.text() == "x"
        assert upstream.num_probes == num_probes + 2


@pytest.mark.parametrize("status", [429, 500])
async def test_response_is_used_if_the_list_of_models_cannot_be_read(status: int) -> None:
    versioned = chat_chunk({"content": "x"}, "stop") | {"model": "v1"}
    async with fake.running() as upstream, serving(upstream.url) as served:
        upstream.chat(fake.streams(versioned))
        upstream.handlers["/v1/models"] = fake.replies(fake.response(status, b""))
        num_probes = upstream.num_probes
        for _ in range(2):
            assert await served.text() == "x"
        assert upstream.num_probes == num_probes + 1
        [upstream_client] = [member.upstream for member in served.runtime._pool.members]
        assert upstream_client.accepted_ids["v1"] < float("inf")  # it is checked again


async def test_name_of_the_model_is_checked_once_in_a_response(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(discovery, "_UNCHECKED_S", 0.0)
    chunks = [chunk | {"model": "v1"} for chunk in fake.chat_chunks(["Hi", "!"])]
    async with fake.running() as upstream, serving(upstream.url) as served:
        upstream.chat(fake.streams(*chunks))
        upstream.handlers["/v1/models"] = fake.replies(fake.response(429, b""))
        num_probes = upstream.num_probes
        assert await served.text() == "Hi!"
        assert upstream.num_probes == num_probes + 1


async def test_requests_at_once_check_a_name_of_the_model_only_once() -> None:
    versioned = chat_chunk({"content": "x"}, "stop") | {"model": "v1"}
    async with fake.running() as upstream, serving(upstream.url) as served:
        upstream.chat(fake.streams(versioned))
        num_probes = upstream.num_probes
        texts = await asyncio.gather(*(served.text() for _ in range(4)))
        assert texts == ["x"] * 4
        assert upstream.num_probes == num_probes + 1


async def test_capacity_is_shared_by_callers() -> None:
    async with (
        fake.running() as upstream,
        serving(upstream.url, max_num_seqs=2, max_queue_size=2) as served,
    ):
        backend = served.model.backend
        with backend.reserve(Caller("a"), 2):
            assert served.runtime.stats().num_running == 2
            assert backend.load() == (2, 2)
            with backend.reserve(Caller("b"), 1), pytest.raises(QueueFull):
                backend.reserve(Caller("a"), 2).__enter__()
        assert served.runtime.stats().num_running == 0
