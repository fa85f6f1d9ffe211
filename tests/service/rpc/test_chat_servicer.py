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


async def test_a_whole_answer(running: Running) -> None:
    running.engine.answer("héllo")
    response = await running.chat.CreateChatCompletion(unary())
    [choice] = response.completion.choices
    assert choice.message.content[0].text == "héllo"
    assert choice.finish_reason == chat_pb2.FINISH_REASON_LENGTH
    assert response.completion.usage == chat_pb2.Usage(
        prompt_tokens=len("<user>hi<assistant>"), completion_tokens=6
    )


async def test_a_streamed_answer_never_holds_half_a_character(running: Running) -> None:
    running.engine.answer("né 🎉!")
    responses = [r async for r in running.chat.StreamChatCompletion(stream())]
    deltas = [r.chunk.choices[0].delta.content for r in responses]
    assert deltas == ["n", "é", " ", "🎉", "!"]
    assert responses[-1].chunk.usage.completion_tokens == 9


async def test_usage_says_what_of_the_prompt_was_cached(running: Running) -> None:
    running.engine.script = [
        TokenOutput((97,), num_cached_tokens=16),
        TokenOutput((98,), FinishReason.LENGTH, num_cached_tokens=16),
    ]
    whole = await running.chat.CreateChatCompletion(unary())
    chunks = [r.chunk async for r in running.chat.StreamChatCompletion(stream())]
    usages = [whole.completion.usage, *(c.usage for c in chunks)]
    assert [usage.cached_prompt_tokens for usage in usages] == [16, 16, 16]


async def test_each_choice_ends_by_itself(running: Running) -> None:
    running.engine.script = [
        TokenOutput(tuple(b"one END")),
        TokenOutput(tuple(b"more"), FinishReason.LENGTH),  # of which nobody wants to hear
    ]
    sampling = chat_pb2.SamplingParams(n=2, stop=["END"])
    whole = (await running.chat.CreateChatCompletion(unary(sampling=sampling))).completion
    assert running.engine.requests[0].n == 2
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert [choice.message.content[0].text for choice in whole.choices] == ["one ", "one "]
    assert {choice.finish_reason for choice in whole.choices} == {chat_pb2.FINISH_REASON_STOP}
    assert whole.usage.completion_tokens == 14


async def test_log_probabilities_and_token_ids_are_told_on_demand(running: Running) -> None:
    running.engine.script = [TokenOutput((ord("a"), EOS), FinishReason.STOP)]
    request = {"logprobs": True, "top_logprobs": 2, "prompt_logprobs": 0, "return_token_ids": True}
    whole = (await running.chat.CreateChatCompletion(unary(**request))).completion
    asked = running.engine.requests[0]
    assert (asked.num_logprobs, asked.num_prompt_logprobs) == (2, 0)
    [choice] = whole.choices
    assert list(choice.token_ids) == [ord("a"), EOS]
    [token] = choice.logprobs
    assert (token.token, token.logprob) == ("a", -0.5)
    assert [top.token for top in token.top] == ["a", "b"]
    prompt = "<user>hi<assistant>"
    assert bytes(whole.prompt_token_ids) == prompt.encode()
    assert "".join(logprob.token for logprob in whole.prompt_logprobs) == prompt[1:]


async def test_bad_words_are_asked_for_with_and_without_a_space(running: Running) -> None:
    running.engine.answer("x")
    sampling = chat_pb2.SamplingParams(bad_words=["no"])
    await running.chat.CreateChatCompletion(unary(sampling=sampling))
    [request] = running.engine.requests
    assert set(request.bad_token_sequences) == {tuple(b"no"), tuple(b" no")}


async def test_the_engine_is_asked_what_the_request_says(running: Running) -> None:
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


async def test_a_stop_string_ends_the_answer_and_the_generation(running: Running) -> None:
    running.engine.script = [TokenOutput(tuple(b"one END two")), asyncio.Event()]
    sampling = chat_pb2.SamplingParams(stop=["END"])
    responses = [r async for r in running.chat.StreamChatCompletion(stream(sampling=sampling))]
    assert "".join(r.chunk.choices[0].delta.content for r in responses) == "one "
    last = responses[-1].chunk
    assert last.choices[0].finish_reason == chat_pb2.FINISH_REASON_STOP
    assert last.choices[0].matched_stop.text == "END"
    assert last.usage.completion_tokens == len("one END")
    assert running.engine.num_running == 0


async def test_a_stop_token_is_named_and_the_models_own_end_is_not(running: Running) -> None:
    sampling = chat_pb2.SamplingParams(stop_token_ids=[ord("!")])
    for last, matched in ((ord("!"), chat_pb2.MatchedStop(token_id=ord("!"))), (EOS, None)):
        running.engine.script = [TokenOutput((ord("a"), last), FinishReason.STOP)]
        response = await running.chat.CreateChatCompletion(unary(sampling=sampling))
        [choice] = response.completion.choices
        assert choice.message.content[0].text == "a"
        assert choice.HasField("matched_stop") == (matched is not None)
        if matched is not None:
            assert choice.matched_stop == matched


async def test_headers_come_with_the_first_token(running: Running) -> None:
    go = asyncio.Event()
    running.engine.answer("ok")
    running.engine.script.insert(0, go)
    call = running.chat.StreamChatCompletion(stream())
    headers = asyncio.ensure_future(call.initial_metadata())
    await until(lambda: running.engine.num_running == 1)
    for _ in range(3):  # on the same connection: what was sent before has come before
        await running.models.ListModels(model_service_pb2.ListModelsRequest())
    assert not headers.done()
    go.set()
    assert "chatrpc-admitted" not in dict(await headers)
    assert len([response async for response in call]) == 2


async def test_a_first_token_that_takes_long_is_announced(
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


async def test_leaving_after_the_announcement_frees_the_generation(
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
async def test_a_refusal_comes_before_the_headers(
    running: Running, error: QueueFull, code: grpc.StatusCode, reason: str
) -> None:
    running.engine.generate_error = error
    call = running.chat.StreamChatCompletion(stream())
    refused = await rpc_error(call)
    assert (refused.code, refused.reason) == (code, reason)
    # None were sent: a client may retry elsewhere.
    assert "chatrpc-admitted" not in dict(await call.initial_metadata())


async def test_an_engine_that_dies_ends_the_stream_with_its_reason(running: Running) -> None:
    running.engine.script = [TokenOutput((ord("a"),)), EngineDead()]
    call = running.chat.StreamChatCompletion(stream())
    seen: list[chat_service_pb2.StreamChatCompletionResponse] = []
    refused = await rpc_error(call, seen)
    assert [r.chunk.choices[0].delta.content for r in seen] == ["a"]
    assert (refused.code, refused.reason) == (grpc.StatusCode.INTERNAL, "ENGINE_DEAD")


async def test_nobody_learns_what_went_wrong_inside(running: Running) -> None:
    running.engine.script = [RuntimeError("secret path /etc/passwd")]
    call = running.chat.CreateChatCompletion(unary(), metadata=(("x-request-id", "req-7"),))
    refused = await rpc_error(call)
    assert refused.code == grpc.StatusCode.INTERNAL
    assert refused.reason == "INTERNAL"
    assert "secret" not in refused.message
    assert "req-7" in refused.message


@pytest.mark.parametrize("steps_before", [0, 1])
@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_cancelled_call_frees_its_generation(
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


async def test_a_vanished_client_frees_its_generation(running: Running) -> None:
    running.engine.script = [asyncio.Event()]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        call = type(running.chat)(channel).StreamChatCompletion(stream())
        await until(lambda: running.engine.num_running == 1)
        assert not call.done()
    await until(lambda: running.engine.num_running == 0)


async def test_the_deadline_of_the_call_bounds_the_generation(running: Running) -> None:
    running.engine.script = [asyncio.Event()]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.chat.CreateChatCompletion(unary(), timeout=0.3)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: running.engine.num_running == 0)
    [request] = running.engine.requests
    assert request.deadline is not None
    assert request.deadline < time.monotonic() + 1


async def test_a_missing_model_and_an_unknown_one(running: Running) -> None:
    missing = await rpc_error(running.chat.CreateChatCompletion(unary(model="")))
    assert (missing.code, missing.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MISSING_FIELD")
    assert missing.fields == ["model"]
    unknown = await rpc_error(running.chat.CreateChatCompletion(unary(model="gpt-9")))
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert unknown.metadata == {"model": "gpt-9"}


async def test_a_template_that_refuses_names_the_messages(running: Running) -> None:
    refused = await rpc_error(running.chat.CreateChatCompletion(unary(text="refuse me")))
    assert refused.reason == "TEMPLATE_REFUSED"
    assert refused.fields == ["messages"]


async def test_a_prompt_that_cannot_fit_is_not_even_tokenized(running: Running) -> None:
    refused = await rpc_error(running.chat.CreateChatCompletion(unary(text="x" * 5000)))
    assert refused.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert refused.metadata == {"prompt_tokens": "1000", "max_model_len": "1000"}


async def test_request_without_room_is_not_even_tokenized(running: Running) -> None:
    running.engine.reserve_error = QueueFull(3, 2.5)
    running.model.tokenizer.encode = None  # type: ignore[method-assign, assignment]  # never called
    refused = await rpc_error(running.chat.CreateChatCompletion(unary()))
    assert refused.reason == "QUEUE_FULL"
    assert running.engine.reserved == []


async def test_a_token_that_the_model_does_not_know_is_the_callers_mistake(
    running: Running,
) -> None:
    small = replace(running.model, card=replace(running.model.card, id="small"), vocab_size=100)
    await running.lifecycle.serve(locally_served(small))
    refused = await rpc_error(running.chat.CreateChatCompletion(unary(model="small", text="é")))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["messages"])


async def test_a_name_of_any_length_is_just_not_found(running: Running) -> None:
    refused = await rpc_error(running.chat.CreateChatCompletion(unary(model="x" * 20_000)))
    assert refused.reason == "MODEL_NOT_FOUND"


@pytest.mark.parametrize("method", ["CreateChatCompletion", "StreamChatCompletion"])
async def test_bytes_that_are_no_message_are_the_callers_mistake(
    running: Running, method: str
) -> None:
    call: Any = running.channel.unary_unary(f"/chatrpc.v1.ChatService/{method}")
    for garbage in (b"\xff\xff\xff", b"\x0a\x03\x0a\x01\xff"):
        refused = await rpc_error(call(garbage))
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
        )
    running.engine.answer("fine")
    await running.chat.CreateChatCompletion(unary())


async def test_log_probabilities_that_no_message_could_hold_are_refused(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_calls, "MAX_LOGPROBS_AT_ONCE", 100)
    running.engine.answer("x")
    sampling = chat_pb2.SamplingParams(max_completion_tokens=51)
    request = unary(logprobs=True, top_logprobs=1, sampling=sampling)
    refused = await rpc_error(running.chat.CreateChatCompletion(request))
    assert refused.fields == ["logprobs"]
    call = running.chat.StreamChatCompletion(
        stream(logprobs=True, top_logprobs=1, sampling=sampling)
    )
    assert [response async for response in call]  # a piece at a time they fit
    refused = await rpc_error(running.chat.CreateChatCompletion(unary(prompt_logprobs=20)))
    assert refused.fields == ["prompt_logprobs"]
