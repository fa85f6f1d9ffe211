"""CompletionService over a real socket, with a scripted engine."""

import asyncio
from typing import Any

import grpc
import pytest

from chatrpc.v1 import chat_pb2, completion_pb2, completion_service_pb2
from service.domain.engine import FinishReason, TokenLogprobs, TokenOutput
from service.errors import EngineDead, QueueFull
from service.rpc import generation_calls
from service.rpc.calls import initial_metadata
from tests.fakes.tokenizer import EOS
from tests.fakes.wait import until
from tests.support.grpc_server import Running
from tests.support.rpc_errors import rpc_error


def params(*prompts: str | list[int], **fields: Any) -> completion_pb2.CompletionParams:
    return completion_pb2.CompletionParams(
        model=fields.pop("model", "fake"),
        prompts=[
            completion_pb2.CompletionPrompt(text=prompt)
            if isinstance(prompt, str)
            else completion_pb2.CompletionPrompt(token_ids=completion_pb2.TokenIds(ids=prompt))
            for prompt in prompts
        ],
        **fields,
    )


def unary(*prompts: str | list[int], **fields: Any) -> Any:
    return completion_service_pb2.CreateCompletionRequest(params=params(*prompts, **fields))


def stream(*prompts: str | list[int], **fields: Any) -> Any:
    return completion_service_pb2.StreamCompletionRequest(params=params(*prompts, **fields))


async def whole(running: Running, *prompts: Any, **fields: Any) -> completion_pb2.Completion:
    response = await running.completions.CreateCompletion(unary(*prompts, **fields))
    return response.completion


def logprob(char: str, value: float, **top: float) -> TokenLogprobs:
    return TokenLogprobs(ord(char), value, tuple((ord(c), v) for c, v in top.items()))


async def test_unary_call_returns_the_completion(running: Running) -> None:
    running.engine.answer(" wörld")
    completion = await whole(running, "hi", add_special_tokens=False)
    [choice] = completion.choices
    assert (choice.text, choice.finish_reason) == (" wörld", chat_pb2.FINISH_REASON_LENGTH)
    assert completion.id.startswith("cmpl-")
    assert (completion.model, completion.system_fingerprint) == ("fake", "fp_fake")
    assert completion.usage == chat_pb2.Usage(prompt_tokens=2, completion_tokens=7)
    [received] = running.engine.requests
    assert bytes(received.prompt_token_ids) == b"hi"
    assert received.sampling.max_tokens == 16
    assert received.stop_token_ids == {EOS}
    assert received.num_logprobs is None
    assert received.num_prompt_logprobs is None


async def test_engine_request_has_the_fields_of_the_request(running: Running) -> None:
    running.engine.answer("x")
    sampling = chat_pb2.SamplingParams(
        seed=3, max_completion_tokens=9, stop_token_ids=[7], temperature=0
    )
    await whole(
        running,
        [1, 2, 3],
        sampling=sampling,
        logprobs=2,
        priority=-4,
        cache_salt="mine",
        truncate_prompt_tokens=2,
        model="alias",
    )
    [received] = running.engine.requests
    assert received.prompt_token_ids == (2, 3)
    assert received.sampling.seed == 3
    assert received.sampling.temperature == 0
    assert received.sampling.max_tokens == 9
    assert received.stop_token_ids == {7, EOS}
    assert (received.priority, received.cache_salt, received.num_logprobs) == (-4, "mine", 2)


async def test_choices_of_several_prompts_are_ordered_by_prompt(running: Running) -> None:
    running.engine.script = [
        TokenOutput((ord("b"),), index=1),
        TokenOutput((ord("a"),), FinishReason.LENGTH),
        TokenOutput((ord("c"),), FinishReason.LENGTH, index=1),
    ]
    sampling = chat_pb2.SamplingParams(n=2)
    fields: dict[str, Any] = {"sampling": sampling, "add_special_tokens": False}
    completion = await whole(running, "one", "four", **fields)
    assert [(c.index, c.text) for c in completion.choices] == [
        (0, "a"),
        (1, "bc"),
        (2, "a"),
        (3, "bc"),
    ]
    assert completion.usage == chat_pb2.Usage(prompt_tokens=7, completion_tokens=6)
    assert [received.n for received in running.engine.requests] == [2, 2]
    texts = dict.fromkeys(range(4), "")
    chunks = [
        r.chunk async for r in running.completions.StreamCompletion(stream("one", "four", **fields))
    ]
    for chunk in chunks:
        for delta in chunk.choices:
            texts[delta.index] += delta.text
    assert texts == {0: "a", 1: "bc", 2: "a", 3: "bc"}
    assert chunks[0].id
    assert [bool(chunk.id) for chunk in chunks[1:]] == [False] * (len(chunks) - 1)
    assert chunks[0].usage.prompt_tokens == 7
    assert chunks[-1].usage == completion.usage


async def test_stop_string_ends_each_prompt(running: Running) -> None:
    event = asyncio.Event()
    running.engine.script = [
        TokenOutput(tuple(b"one END two")),
        event,
        TokenOutput((ord("!"),), FinishReason.STOP),
    ]
    sampling = chat_pb2.SamplingParams(stop=["END"])
    call = running.completions.StreamCompletion(stream("a", "b", sampling=sampling))
    chunks = [r.chunk async for r in call]  # the event is never set
    ends = {d.index: d.matched_stop.text for c in chunks for d in c.choices if d.finish_reason}
    assert ends == {0: "END", 1: "END"}
    assert running.engine.num_running == 0


async def test_echo_with_logprobs_scores_the_prompt(running: Running) -> None:
    """Evaluation harnesses send such requests."""
    running.engine.script = [
        TokenOutput(
            (ord("c"),),
            FinishReason.LENGTH,
            logprobs=(logprob("c", -0.5, c=-0.5, d=-1.0),),
            prompt_logprobs=(logprob("b", -2.0, x=-0.1),),
        )
    ]
    sampling = chat_pb2.SamplingParams(max_completion_tokens=1)
    completion = await whole(running, list(b"ab"), sampling=sampling, echo=True, logprobs=1)
    [choice] = completion.choices
    assert choice.text == "abc"
    assert [t.token for t in choice.prompt_tokens] == ["a", "b"]
    assert not choice.prompt_tokens[0].HasField("logprob")
    assert choice.prompt_tokens[1].logprob == -2.0
    assert [(t.token, t.token_id) for t in choice.prompt_tokens[1].top] == [("x", ord("x"))]
    assert [(t.token, t.logprob) for t in choice.logprobs] == [("c", -0.5)]
    assert [t.token for t in choice.logprobs[0].top] == ["c", "d"]
    assert choice.text_offsets == [0, 1, 2]
    [received] = running.engine.requests
    assert (received.num_logprobs, received.num_prompt_logprobs) == (1, 1)


async def test_request_for_zero_tokens_scores_only_the_prompt(running: Running) -> None:
    running.engine.script = [
        TokenOutput((ord("c"),), FinishReason.LENGTH, prompt_logprobs=(logprob("b", -2.0),))
    ]
    sampling = chat_pb2.SamplingParams(max_completion_tokens=0)
    completion = await whole(
        running, "ab", sampling=sampling, echo=True, logprobs=0, add_special_tokens=False
    )
    [choice] = completion.choices
    assert (choice.text, choice.finish_reason) == ("ab", chat_pb2.FINISH_REASON_LENGTH)
    assert (len(choice.prompt_tokens), len(choice.logprobs)) == (2, 0)
    assert completion.usage == chat_pb2.Usage(prompt_tokens=2)
    rejected = await rpc_error(running.completions.CreateCompletion(unary("a", sampling=sampling)))
    assert rejected.fields == ["sampling.max_completion_tokens"]


async def test_choice_is_sent_after_its_prompt_logprobs(running: Running) -> None:
    running.engine.script = [
        TokenOutput((ord("y"),), FinishReason.LENGTH, index=1),
        TokenOutput((ord("x"),), FinishReason.LENGTH, prompt_logprobs=(logprob("b", -1.0),)),
    ]
    sampling = chat_pb2.SamplingParams(n=2)
    fields: dict[str, Any] = {"sampling": sampling, "echo": True, "prompt_logprobs": 0}
    completion = await whole(running, list(b"ab"), **fields)
    assert [choice.text for choice in completion.choices] == ["abx", "aby"]
    assert [len(choice.prompt_tokens) for choice in completion.choices] == [2, 2]


async def test_prompt_of_one_token_has_no_logprobs(running: Running) -> None:
    running.engine.answer("x")
    [choice] = (await whole(running, [97], echo=True, prompt_logprobs=1)).choices
    assert (choice.text, len(choice.prompt_tokens)) == ("ax", 1)


async def test_token_ids_are_returned_if_requested(running: Running) -> None:
    running.engine.answer("x")
    [choice] = (await whole(running, [97, 98], return_token_ids=True)).choices
    assert list(choice.prompt_token_ids) == [97, 98]
    assert list(choice.token_ids) == [120]
    [choice] = (await whole(running, [97, 98])).choices
    assert not choice.prompt_token_ids
    assert not choice.token_ids


async def test_logprobs_of_a_partial_character_are_sent_with_the_character(
    running: Running,
) -> None:
    first, second = "é".encode()
    running.engine.script = [
        TokenOutput((first,), logprobs=(TokenLogprobs(first, -1.0),)),
        TokenOutput((second,), FinishReason.LENGTH, logprobs=(TokenLogprobs(second, -2.0),)),
    ]
    [chunk] = [r.chunk async for r in running.completions.StreamCompletion(stream("a", logprobs=0))]
    [delta] = chunk.choices
    assert (delta.text, delta.num_tokens) == ("é", 2)
    assert [t.token_bytes for t in delta.logprobs] == [bytes([first]), bytes([second])]
    assert delta.text_offsets == [0, 0]


@pytest.mark.parametrize(
    ("fields", "reason", "path"),
    [
        ({"prompts": ()}, "MISSING_FIELD", "prompts"),
        ({"prompts": ([],)}, "INVALID_FIELD", "prompts[0].token_ids.ids"),
        ({"prompts": ([1, 999],)}, "INVALID_FIELD", "prompts[0].token_ids.ids[1]"),
        ({"prompts": ("a", "")}, "INVALID_FIELD", "prompts[1]"),
        ({"prompts": ("a",) * 129}, "INVALID_FIELD", "prompts"),
        ({"prompts": ("a", "b" * 1000)}, "CONTEXT_LENGTH_EXCEEDED", "prompts[1]"),
        ({"prompts": ("a", "b" * 5000)}, "CONTEXT_LENGTH_EXCEEDED", "prompts[1].text"),
        ({"sampling": chat_pb2.SamplingParams(n=0)}, "INVALID_FIELD", "sampling.n"),
        ({"sampling": chat_pb2.SamplingParams(n=129)}, "INVALID_FIELD", "sampling.n"),
        (
            {"sampling": chat_pb2.SamplingParams(temperature=3)},
            "INVALID_FIELD",
            "sampling.temperature",
        ),
        ({"logprobs": 21}, "INVALID_FIELD", "logprobs"),
        ({"prompt_logprobs": 21}, "INVALID_FIELD", "prompt_logprobs"),
        ({"truncate_prompt_tokens": 0}, "INVALID_FIELD", "truncate_prompt_tokens"),
        ({"cache_salt": "x" * 513}, "INVALID_FIELD", "cache_salt"),
        ({"suffix": "x"}, "UNSUPPORTED_FIELD", "suffix"),
        ({"model": ""}, "MISSING_FIELD", "model"),
    ],
)
async def test_invalid_field_is_rejected_with_its_name(
    running: Running, fields: dict[str, Any], reason: str, path: str
) -> None:
    prompts = fields.pop("prompts", ("a",))
    request = unary(*prompts, add_special_tokens=False, **fields)
    rejected = await rpc_error(running.completions.CreateCompletion(request))
    assert rejected.code == grpc.StatusCode.INVALID_ARGUMENT
    assert (rejected.reason, rejected.fields) == (reason, [path])
    assert running.engine.requests == []


async def test_empty_prompt_is_rejected_with_its_field(running: Running) -> None:
    request = unary()
    request.params.prompts.add()
    rejected = await rpc_error(running.completions.CreateCompletion(request))
    assert (rejected.reason, rejected.fields) == ("MISSING_FIELD", ["prompts[0]"])


async def test_error_for_a_long_prompt_has_both_lengths(running: Running) -> None:
    rejected = await rpc_error(running.completions.CreateCompletion(unary([97] * 1000)))
    assert rejected.metadata == {"prompt_tokens": "1000", "max_model_len": "1000"}
    assert rejected.message == (
        "This model's maximum context length is 1000 tokens. However, your prompt resulted in "
        "1000 tokens. Please reduce the length of the prompt."
    )


async def test_too_many_logprobs_for_one_message_are_rejected(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_calls, "MAX_LOGPROBS_AT_ONCE", 100)
    running.engine.answer("x")
    request = unary([97] * 51, prompt_logprobs=1)
    rejected = await rpc_error(running.completions.CreateCompletion(request))
    assert rejected.fields == ["prompt_logprobs"]


async def test_all_prompts_are_rejected_if_the_queue_is_full(running: Running) -> None:
    running.engine.generate_error = QueueFull(3, 2.5)
    call = running.completions.StreamCompletion(stream("a", "b"))
    rejected = await rpc_error(call)
    assert rejected.reason == "QUEUE_FULL"
    assert "chatrpc-admitted" not in dict(await call.initial_metadata())
    assert running.engine.num_running == 0


async def test_cancelled_call_after_admission_metadata_frees_all_prompts(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initial_metadata, "MAX_SILENCE_S", 0.01)
    running.engine.script = [asyncio.Event()]
    call = running.completions.StreamCompletion(stream("a", "b", "c"))
    assert dict(await call.initial_metadata())["chatrpc-admitted"] == "1"
    assert running.engine.num_running == 3
    call.cancel()
    await until(lambda: running.engine.num_running == 0)


async def test_failed_prompt_ends_the_call(running: Running) -> None:
    running.engine.script = [TokenOutput((97,)), EngineDead()]
    rejected = await rpc_error(running.completions.CreateCompletion(unary("a", "b")))
    assert rejected.reason == "ENGINE_DEAD"
    await until(lambda: running.engine.num_running == 0)


async def test_deadline_of_the_call_ends_all_prompts(running: Running) -> None:
    running.engine.script = [asyncio.Event()]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.completions.CreateCompletion(unary("a", "b"), timeout=0.3)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: running.engine.num_running == 0)


async def test_usage_has_the_cached_tokens_of_all_prompts(running: Running) -> None:
    running.engine.script = [TokenOutput((97,), FinishReason.LENGTH, num_cached_tokens=16)]
    completion = await whole(running, "a", "b")
    assert completion.usage.cached_prompt_tokens == 32
