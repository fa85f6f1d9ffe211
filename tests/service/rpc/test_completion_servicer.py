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


async def test_a_prompt_is_continued(running: Running) -> None:
    running.engine.answer(" wörld")
    completion = await whole(running, "hi", add_special_tokens=False)
    [choice] = completion.choices
    assert (choice.text, choice.finish_reason) == (" wörld", chat_pb2.FINISH_REASON_LENGTH)
    assert completion.id.startswith("cmpl-")
    assert (completion.model, completion.system_fingerprint) == ("fake", "fp_fake")
    assert completion.usage == chat_pb2.Usage(prompt_tokens=2, completion_tokens=7)
    [asked] = running.engine.requests
    assert bytes(asked.prompt_token_ids) == b"hi"
    assert asked.sampling.max_tokens == 16
    assert asked.stop_token_ids == {EOS}
    assert asked.num_logprobs is None
    assert asked.num_prompt_logprobs is None


async def test_what_is_asked_reaches_the_engine(running: Running) -> None:
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
    [asked] = running.engine.requests
    assert asked.prompt_token_ids == (2, 3)
    assert asked.sampling.seed == 3
    assert asked.sampling.temperature == 0
    assert asked.sampling.max_tokens == 9
    assert asked.stop_token_ids == {7, EOS}
    assert (asked.priority, asked.cache_salt, asked.num_logprobs) == (-4, "mine", 2)


async def test_several_prompts_and_choices_have_their_places(running: Running) -> None:
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
    assert [asked.n for asked in running.engine.requests] == [2, 2]
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


async def test_a_stop_string_ends_one_prompt_and_not_the_other(running: Running) -> None:
    event = asyncio.Event()
    running.engine.script = [
        TokenOutput(tuple(b"one END two")),
        event,
        TokenOutput((ord("!"),), FinishReason.STOP),
    ]
    sampling = chat_pb2.SamplingParams(stop=["END"])
    call = running.completions.StreamCompletion(stream("a", "b", sampling=sampling))
    chunks = [r.chunk async for r in call]  # nobody ever sets the event
    ends = {d.index: d.matched_stop.text for c in chunks for d in c.choices if d.finish_reason}
    assert ends == {0: "END", 1: "END"}
    assert running.engine.num_running == 0


async def test_an_echo_with_log_probabilities_scores_the_prompt(running: Running) -> None:
    """What an evaluation harness asks for."""
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
    [asked] = running.engine.requests
    assert (asked.num_logprobs, asked.num_prompt_logprobs) == (1, 1)


async def test_zero_tokens_score_the_prompt_alone(running: Running) -> None:
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
    refused = await rpc_error(running.completions.CreateCompletion(unary("a", sampling=sampling)))
    assert refused.fields == ["sampling.max_completion_tokens"]


async def test_a_choice_waits_until_its_prompt_can_be_told(running: Running) -> None:
    running.engine.script = [
        TokenOutput((ord("y"),), FinishReason.LENGTH, index=1),
        TokenOutput((ord("x"),), FinishReason.LENGTH, prompt_logprobs=(logprob("b", -1.0),)),
    ]
    sampling = chat_pb2.SamplingParams(n=2)
    fields: dict[str, Any] = {"sampling": sampling, "echo": True, "prompt_logprobs": 0}
    completion = await whole(running, list(b"ab"), **fields)
    assert [choice.text for choice in completion.choices] == ["abx", "aby"]
    assert [len(choice.prompt_tokens) for choice in completion.choices] == [2, 2]


async def test_a_prompt_of_one_token_has_no_log_probability(running: Running) -> None:
    running.engine.answer("x")
    [choice] = (await whole(running, [97], echo=True, prompt_logprobs=1)).choices
    assert (choice.text, len(choice.prompt_tokens)) == ("ax", 1)


async def test_token_ids_are_returned_where_they_are_asked_for(running: Running) -> None:
    running.engine.answer("x")
    [choice] = (await whole(running, [97, 98], return_token_ids=True)).choices
    assert list(choice.prompt_token_ids) == [97, 98]
    assert list(choice.token_ids) == [120]
    [choice] = (await whole(running, [97, 98])).choices
    assert not choice.prompt_token_ids
    assert not choice.token_ids


async def test_a_half_character_keeps_its_log_probabilities_with_it(running: Running) -> None:
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
async def test_a_mistake_is_named(
    running: Running, fields: dict[str, Any], reason: str, path: str
) -> None:
    prompts = fields.pop("prompts", ("a",))
    request = unary(*prompts, add_special_tokens=False, **fields)
    refused = await rpc_error(running.completions.CreateCompletion(request))
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.reason, refused.fields) == (reason, [path])
    assert running.engine.requests == []


async def test_a_prompt_that_is_missing_is_named(running: Running) -> None:
    request = unary()
    request.params.prompts.add()
    refused = await rpc_error(running.completions.CreateCompletion(request))
    assert (refused.reason, refused.fields) == ("MISSING_FIELD", ["prompts[0]"])


async def test_the_words_of_a_prompt_that_is_too_long(running: Running) -> None:
    refused = await rpc_error(running.completions.CreateCompletion(unary([97] * 1000)))
    assert refused.metadata == {"prompt_tokens": "1000", "max_model_len": "1000"}
    assert refused.message == (
        "This model's maximum context length is 1000 tokens. However, your prompt resulted in "
        "1000 tokens. Please reduce the length of the prompt."
    )


async def test_an_answer_that_no_message_could_hold_is_refused(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_calls, "MAX_LOGPROBS_AT_ONCE", 100)
    running.engine.answer("x")
    request = unary([97] * 51, prompt_logprobs=1)
    refused = await rpc_error(running.completions.CreateCompletion(request))
    assert refused.fields == ["prompt_logprobs"]


async def test_all_prompts_are_admitted_or_none(running: Running) -> None:
    running.engine.generate_error = QueueFull(3, 2.5)
    call = running.completions.StreamCompletion(stream("a", "b"))
    refused = await rpc_error(call)
    assert refused.reason == "QUEUE_FULL"
    assert "chatrpc-admitted" not in dict(await call.initial_metadata())
    assert running.engine.num_running == 0


async def test_a_long_wait_is_announced_and_leaving_frees_all(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initial_metadata, "MAX_SILENCE_S", 0.01)
    running.engine.script = [asyncio.Event()]
    call = running.completions.StreamCompletion(stream("a", "b", "c"))
    assert dict(await call.initial_metadata())["chatrpc-admitted"] == "1"
    assert running.engine.num_running == 3
    call.cancel()
    await until(lambda: running.engine.num_running == 0)


async def test_one_prompt_that_fails_ends_the_call(running: Running) -> None:
    running.engine.script = [TokenOutput((97,)), EngineDead()]
    refused = await rpc_error(running.completions.CreateCompletion(unary("a", "b")))
    assert refused.reason == "ENGINE_DEAD"
    await until(lambda: running.engine.num_running == 0)


async def test_the_deadline_bounds_all(running: Running) -> None:
    running.engine.script = [asyncio.Event()]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.completions.CreateCompletion(unary("a", "b"), timeout=0.3)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: running.engine.num_running == 0)


async def test_usage_says_what_of_all_prompts_was_cached(running: Running) -> None:
    running.engine.script = [TokenOutput((97,), FinishReason.LENGTH, num_cached_tokens=16)]
    completion = await whole(running, "a", "b")
    assert completion.usage.cached_prompt_tokens == 32
