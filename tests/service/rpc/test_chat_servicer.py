"""ChatService over a real socket, with a scripted engine."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import grpc
import pytest

from chatrpc.v1 import chat_pb2, chat_service_pb2, model_service_pb2
from service.domain.engine import FinishReason, TokenOutput
from service.errors import ContextLengthExceeded, EngineDead, QueueFull
from service.generation.local_backend import locally_served
from service.rpc import generation_calls
from service.rpc.calls import initial_metadata
from tests.fakes.tokenizer import EOS
from tests.fakes.wait import until
from tests.support.grpc_server import Running, params
from tests.support.rpc_errors import rpc_error


def unary(**fields: Any) -> chat_service_pb2.CreateChatCompletionRequest:
    return chat_service_pb2.CreateChatCompletionRequest(params=params(**fields))


def stream(**fields: Any) -> chat_service_pb2.StreamChatCompletionRequest:
    return chat_service_pb2.StreamChatCompletionRequest(params=params(**fields))


async def test_unary_chat_returns_the_completion(running: Running) -> None:
    running.engine.answer("héllo")
    response = await running.chat.CreateChatCompletion(unary())
    [choice] = response.completion.choices
    assert choice.message.content[0].text == "héllo"
    assert choice.finish_reason == chat_pb2.FINISH_REASON_LENGTH
    assert response.completion.usage == chat_pb2.Usage(
        prompt_tokens=len("<user>hi<assistant>"), completion_tokens=6
    )


async def test_streamed_delta_never_ends_inside_a_character(running: Running) -> None:
    running.engine.answer("né 🎉!")
    responses = [r async for r in running.chat.StreamChatCompletion(stream())]
    deltas = [r.chunk.choices[0].delta.content for r in responses]
    assert deltas == ["n", "é", " ", "🎉", "!"]
    assert responses[-1].chunk.usage.completion_tokens == 9


async def test_usage_has_the_cached_prompt_tokens(running: Running) -> None:
    running.engine.script = [
        TokenOutput((97,), num_cached_tokens=16),
        TokenOutput((98,), FinishReason.LENGTH, num_cached_tokens=16),
    ]
    whole = await running.chat.CreateChatCompletion(unary())
    chunks = [r.chunk async for r in running.chat.StreamChatCompletion(stream())]
    usages = [whole.completion.usage, *(c.usage for c in chunks)]
    assert [usage.cached_prompt_tokens for usage in usages] == [16, 16, 16]


async def test_each_choice_ends_at_its_own_stop_string(running: Running) -> None:
    running.engine.script = [
        TokenOutput(tuple(b"one END")),
        TokenOutput(tuple(b"more"), FinishReason.LENGTH),  # after the stop string, so not returned
    ]
    sampling = chat_pb2.SamplingParams(n=2, stop=["END"])
    whole = (await running.chat.CreateChatCompletion(unary(sampling=sampling))).completion
    assert running.engine.requests[0].n == 2
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert [choice.message.content[0].text for choice in whole.choices] == ["one ", "one "]
    assert {choice.finish_reason for choice in whole.choices} == {chat_pb2.FINISH_REASON_STOP}
    assert whole.usage.completion_tokens == 14


async def test_logprobs_and_token_ids_are_returned_if_requested(running: Running) -> None:
    running.engine.script = [TokenOutput((ord("a"), EOS), FinishReason.STOP)]
    request = {"logprobs": True, "top_logprobs": 2, "prompt_logprobs": 0, "return_token_ids": True}
    whole = (await running.chat.CreateChatCompletion(unary(**request))).completion
    received = running.engine.requests[0]
    assert (received.num_logprobs, received.num_prompt_logprobs) == (2, 0)
    [choice] = whole.choices
    assert list(choice.token_ids) == [ord("a"), EOS]
    [token] = choice.logprobs
    assert (token.token, token.logprob) == ("a", -0.5)
    assert [top.token for top in token.top] == ["a", "b"]
    prompt = "<user>hi<assistant>"
    assert bytes(whole.prompt_token_ids) == prompt.encode()
    assert "".join(logprob.token for logprob in whole.prompt_logprobs) == prompt[1:]


async def test_bad_words_are_sent_with_and_without_a_space(running: Running) -> None:
    running.engine.answer("x")
    sampling = chat_pb2.SamplingParams(bad_words=["no"])
    await running.chat.CreateChatCompletion(unary(sampling=sampling))
    [request] = running.engine.requests
    assert set(request.bad_token_sequences) == {tuple(b"no"), tuple(b" no")}


async def test_engine_request_has_the_fields_of_the_request(running: Running) -> None:
    running.engine.answer("x")
    sampling = chat_pb2.SamplingParams(stop_token_ids=[7], seed=5)
    await running.chat.CreateChatCompletion(
        unary(sampling=sampling, model="alias", cache_salt="mine")
    )
    await running.chat.CreateChatCompletion(
        unary(sampling=chat_pb2.SamplingParams(ignore_eos=True))
    )
    first, second = running.engine.requests
    assert bytes(first.prompt_token_ids) == b"<user>hi<assistant>"
    assert first.stop_token_ids == {7, EOS}
    assert first.sampling.seed == 5
    assert (first.cache_salt, second.cache_salt) == ("mine", "")
    assert second.stop_token_ids == frozenset()


async def test_stop_string_ends_the_response_and_the_generation(running: Running) -> None:
    running.engine.script = [TokenOutput(tuple(b"one END two")), asyncio.Event()]
    sampling = chat_pb2.SamplingParams(stop=["END"])
    responses = [r async for r in running.chat.StreamChatCompletion(stream(sampling=sampling))]
    assert "".join(r.chunk.choices[0].delta.content for r in responses) == "one "
    last = responses[-1].chunk
    assert last.choices[0].finish_reason == chat_pb2.FINISH_REASON_STOP
    assert last.choices[0].matched_stop.text == "END"
    assert last.usage.completion_tokens == len("one END")
    assert running.engine.num_running == 0


async def test_matched_stop_is_a_stop_token_and_never_the_eos_token(running: Running) -> None:
    sampling = chat_pb2.SamplingParams(stop_token_ids=[ord("!")])
    for last, matched in ((ord("!"), chat_pb2.MatchedStop(token_id=ord("!"))), (EOS, None)):
        running.engine.script = [TokenOutput((ord("a"), last), FinishReason.STOP)]
        response = await running.chat.CreateChatCompletion(unary(sampling=sampling))
        [choice] = response.completion.choices
        assert choice.message.content[0].text == "a"
        assert choice.HasField("matched_stop") == (matched is not None)
        if matched is not None:
            assert choice.matched_stop == matched


async def test_headers_are_sent_with_the_first_token(running: Running) -> None:
    go = asyncio.Event()
    running.engine.answer("ok")
    running.engine.script.insert(0, go)
    call = running.chat.StreamChatCompletion(stream())
    headers = asyncio.ensure_future(call.initial_metadata())
    await until(lambda: running.engine.num_running == 1)
    for _ in range(3):  # on the same connection: earlier frames arrive first
        await running.models.ListModels(model_service_pb2.ListModelsRequest())
    assert not headers.done()
    go.set()
    assert "chatrpc-admitted" not in dict(await headers)
    assert len([response async for response in call]) == 2


async def test_late_first_token_is_preceded_by_admission_metadata(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initial_metadata, "MAX_SILENCE_S", 0.01)
    go = asyncio.Event()
    running.engine.answer("ok")
    running.engine.script.insert(0, go)
    call = running.chat.StreamChatCompletion(stream())
    assert dict(await call.initial_metadata())["chatrpc-admitted"] == "1"
    go.set()
    assert len([response async for response in call]) == 2


async def test_cancelled_call_after_admission_metadata_frees_its_generation(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initial_metadata, "MAX_SILENCE_S", 0.01)
    running.engine.script = [asyncio.Event()]
    call = running.chat.StreamChatCompletion(stream())
    await call.initial_metadata()
    assert running.engine.num_running == 1
    call.cancel()
    await until(lambda: running.engine.num_running == 0)


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (QueueFull(3, 2.5), grpc.StatusCode.UNAVAILABLE, "QUEUE_FULL"),
        (
            ContextLengthExceeded(2000, 1000),
            grpc.StatusCode.INVALID_ARGUMENT,
            "CONTEXT_LENGTH_EXCEEDED",
        ),
    ],
)
async def test_rejected_stream_has_no_admission_metadata(
    running: Running, error: QueueFull, code: grpc.StatusCode, reason: str
) -> None:
    running.engine.generate_error = error
    call = running.chat.StreamChatCompletion(stream())
    rejected = await rpc_error(call)
    assert (rejected.code, rejected.reason) == (code, reason)
    # No initial metadata was sent, so a client may retry on another replica.
    assert "chatrpc-admitted" not in dict(await call.initial_metadata())


async def test_stream_of_a_dead_engine_ends_with_its_reason(running: Running) -> None:
    running.engine.script = [TokenOutput((ord("a"),)), EngineDead()]
    call = running.chat.StreamChatCompletion(stream())
    seen: list[chat_service_pb2.StreamChatCompletionResponse] = []
    rejected = await rpc_error(call, seen)
    assert [r.chunk.choices[0].delta.content for r in seen] == ["a"]
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.INTERNAL, "ENGINE_DEAD")


async def test_internal_error_hides_its_text(running: Running) -> None:
    running.engine.script = [RuntimeError("secret path /etc/passwd")]
    call = running.chat.CreateChatCompletion(unary(), metadata=(("x-request-id", "req-7"),))
    rejected = await rpc_error(call)
    assert rejected.code == grpc.StatusCode.INTERNAL
    assert rejected.reason == "INTERNAL"
    assert "secret" not in rejected.message
    assert "req-7" in rejected.message


@pytest.mark.parametrize("steps_before", [0, 1])
@pytest.mark.parametrize("is_streamed", [True, False])
async def test_cancelled_call_frees_its_generation(
    running: Running, steps_before: int, is_streamed: bool
) -> None:
    running.engine.script = [*[TokenOutput((97,))] * steps_before, asyncio.Event()]
    call = (
        running.chat.StreamChatCompletion(stream())
        if is_streamed
        else running.chat.CreateChatCompletion(unary())
    )
    await until(lambda: running.engine.num_running == 1)
    call.cancel()
    await until(lambda: running.engine.num_running == 0)


async def test_closed_channel_frees_its_generation(running: Running) -> None:
    running.engine.script = [asyncio.Event()]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        call = type(running.chat)(channel).StreamChatCompletion(stream())
        await until(lambda: running.engine.num_running == 1)
        assert not call.done()
    await until(lambda: running.engine.num_running == 0)


async def test_deadline_of_the_call_ends_the_generation(running: Running) -> None:
    running.engine.script = [asyncio.Event()]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.chat.CreateChatCompletion(unary(), timeout=0.3)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: running.engine.num_running == 0)
    [request] = running.engine.requests
    assert request.deadline is not None
    assert request.deadline < time.monotonic() + 1


async def test_missing_or_unknown_model_is_rejected(running: Running) -> None:
    missing = await rpc_error(running.chat.CreateChatCompletion(unary(model="")))
    assert (missing.code, missing.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MISSING_FIELD")
    assert missing.fields == ["model"]
    unknown = await rpc_error(running.chat.CreateChatCompletion(unary(model="gpt-9")))
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert unknown.metadata == {"model": "gpt-9"}


async def test_error_of_the_template_names_the_messages(running: Running) -> None:
    rejected = await rpc_error(running.chat.CreateChatCompletion(unary(text="refuse me")))
    assert rejected.reason == "TEMPLATE_REFUSED"
    assert rejected.fields == ["messages"]


async def test_prompt_that_cannot_fit_is_rejected_before_it_is_tokenized(running: Running) -> None:
    rejected = await rpc_error(running.chat.CreateChatCompletion(unary(text="x" * 5000)))
    assert rejected.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert rejected.metadata == {"prompt_tokens": "1000", "max_model_len": "1000"}


async def test_request_to_a_full_queue_is_rejected_before_it_is_tokenized(running: Running) -> None:
    running.engine.reserve_error = QueueFull(3, 2.5)
    running.model.tokenizer.encode = None  # type: ignore[method-assign, assignment]  # never called
    rejected = await rpc_error(running.chat.CreateChatCompletion(unary()))
    assert rejected.reason == "QUEUE_FULL"
    assert running.engine.reserved == []


async def test_token_outside_the_vocabulary_is_an_invalid_argument(
    running: Running,
) -> None:
    small = replace(running.model, card=replace(running.model.card, id="small"), vocab_size=100)
    await running.lifecycle.serve(locally_served(small))
    rejected = await rpc_error(running.chat.CreateChatCompletion(unary(model="small", text="é")))
    assert (rejected.code, rejected.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["messages"])


async def test_long_name_of_a_model_is_not_found(running: Running) -> None:
    rejected = await rpc_error(running.chat.CreateChatCompletion(unary(model="x" * 20_000)))
    assert rejected.reason == "MODEL_NOT_FOUND"


@pytest.mark.parametrize("method", ["CreateChatCompletion", "StreamChatCompletion"])
async def test_bytes_that_cannot_be_parsed_are_an_invalid_argument(
    running: Running, method: str
) -> None:
    call: Any = running.channel.unary_unary(f"/chatrpc.v1.ChatService/{method}")
    for garbage in (b"\xff\xff\xff", b"\x0a\x03\x0a\x01\xff"):
        rejected = await rpc_error(call(garbage))
        assert (rejected.code, rejected.reason) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
        )
    running.engine.answer("fine")
    await running.chat.CreateChatCompletion(unary())


async def test_too_many_logprobs_for_one_message_are_rejected(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_calls, "MAX_LOGPROBS_AT_ONCE", 100)
    running.engine.answer("x")
    sampling = chat_pb2.SamplingParams(max_completion_tokens=51)
    request = unary(logprobs=True, top_logprobs=1, sampling=sampling)
    rejected = await rpc_error(running.chat.CreateChatCompletion(request))
    assert rejected.fields == ["logprobs"]
    call = running.chat.StreamChatCompletion(
        stream(logprobs=True, top_logprobs=1, sampling=sampling)
    )
    assert [response async for response in call]  # each chunk is small enough
    rejected = await rpc_error(running.chat.CreateChatCompletion(unary(prompt_logprobs=20)))
    assert rejected.fields == ["prompt_logprobs"]
