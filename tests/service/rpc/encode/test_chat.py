"""Deltas are encoded as a completion and as chunks."""

import math
from collections.abc import Sequence
from dataclasses import replace

from chatrpc.v1 import chat_pb2
from service.domain.backend import DecodedLogprob, Prompt, TextDelta, TokenUsage
from service.domain.chat import ChatRequest, PromptOptions
from service.domain.engine import FinishReason
from service.domain.sampling import SamplingParams
from service.rpc.encode.chat import ChatEncoder
from tests.support.grpc_server import CARD

REQUEST = ChatRequest("fake", (), SamplingParams(), PromptOptions())
TWO = replace(REQUEST, n=2, returns_token_ids=True)
DELTAS = [
    TextDelta("Pa", 1, num_cached_tokens=4),
    TextDelta("", 2, num_cached_tokens=4),
    TextDelta("ris", 1, num_cached_tokens=4),
    TextDelta("", 1, FinishReason.STOP, "END", num_cached_tokens=4),
]


def encoder(request: ChatRequest = REQUEST) -> ChatEncoder:
    prompt = Prompt(token_ids=tuple(b"prompt."), num_tokens=7)
    return ChatEncoder(CARD, request, prompt, "chatcmpl-x", 123)


def completion(
    deltas: Sequence[TextDelta], request: ChatRequest = REQUEST
) -> chat_pb2.ChatCompletion:
    return encoder(request).completion(deltas)


def usage(num_completion_tokens: int) -> chat_pb2.Usage:
    return chat_pb2.Usage(
        prompt_tokens=7, completion_tokens=num_completion_tokens, cached_prompt_tokens=4
    )


def test_completion_is_its_joined_deltas() -> None:
    whole = completion(DELTAS)
    assert whole.id == "chatcmpl-x"
    assert whole.create_time.seconds == 123
    assert whole.model == "fake"
    assert whole.system_fingerprint == "fp_fake"
    assert whole.usage == usage(5)
    [choice] = whole.choices
    assert choice.message.role == chat_pb2.ROLE_ASSISTANT
    assert [part.text for part in choice.message.content] == ["Paris"]
    assert choice.finish_reason == chat_pb2.FINISH_REASON_STOP
    assert choice.matched_stop.text == "END"


def test_first_chunk_has_the_fields_that_are_sent_once() -> None:
    builder = encoder()
    chunks = [chunk for delta in DELTAS if (chunk := builder.chunk(delta)) is not None]
    assert [c.choices[0].delta.content for c in chunks] == ["Pa", "ris", ""]
    assert [c.id for c in chunks] == ["chatcmpl-x", "", ""]
    assert [c.model for c in chunks] == ["fake", "", ""]
    assert [c.choices[0].delta.role for c in chunks] == [
        chat_pb2.ROLE_ASSISTANT,
        chat_pb2.ROLE_UNSPECIFIED,
        chat_pb2.ROLE_UNSPECIFIED,
    ]
    assert [c.HasField("usage") for c in chunks] == [True, False, True]
    assert chunks[0].usage == usage(1)
    assert chunks[-1].usage == usage(5)
    assert chunks[-1].choices[0].finish_reason == chat_pb2.FINISH_REASON_STOP


def test_tokens_without_text_are_counted_in_the_next_chunk() -> None:
    builder = encoder()
    chunks = [chunk for delta in DELTAS if (chunk := builder.chunk(delta)) is not None]
    assert [c.choices[0].num_tokens for c in chunks] == [1, 3, 1]


def test_empty_output_is_one_chunk() -> None:
    chunk = encoder().chunk(TextDelta("", 1, FinishReason.STOP))
    assert chunk is not None
    assert chunk.id == "chatcmpl-x"
    assert chunk.usage.completion_tokens == 1
    assert not chunk.choices[0].delta.HasField("content")


def test_each_choice_has_its_own_deltas() -> None:
    deltas = [
        TextDelta("a", 1, index=0, token_ids=(1,)),
        TextDelta("x", 1, index=1, token_ids=(2,)),
        TextDelta("", 1, FinishReason.LENGTH, index=1, token_ids=(3,)),
        TextDelta("b", 1, FinishReason.STOP, index=0, token_ids=(4,)),
    ]
    whole = completion(deltas, TWO)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert [choice.message.content[0].text for choice in whole.choices] == ["ab", "x"]
    assert [list(choice.token_ids) for choice in whole.choices] == [[1, 4], [2, 3]]
    assert list(whole.prompt_token_ids) == list(b"prompt.")
    assert whole.usage.completion_tokens == 4

    builder = encoder(TWO)
    chunks = [chunk for delta in deltas if (chunk := builder.chunk(delta)) is not None]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert [choice.index for choice in choices] == [0, 1, 1, 0]
    assert [bool(choice.delta.role) for choice in choices] == [True, True, False, False]
    assert [list(choice.token_ids) for choice in choices] == [[1], [2], [3], [4]]
    assert [chunk.HasField("usage") for chunk in chunks] == [True, False, False, True]
    assert chunks[-1].usage.completion_tokens == 4
    assert [list(chunk.prompt_token_ids) for chunk in chunks] == [list(b"prompt."), [], [], []]


def test_token_ids_are_absent_unless_requested() -> None:
    delta = TextDelta("a", 1, FinishReason.STOP, token_ids=(1,))
    whole = completion([delta])
    assert (list(whole.prompt_token_ids), list(whole.choices[0].token_ids)) == ([], [])
    chunk = encoder().chunk(delta)
    assert chunk is not None
    assert list(chunk.choices[0].token_ids) == []


def test_token_ids_are_sent_with_their_text() -> None:
    builder = encoder(TWO)
    assert builder.chunk(TextDelta("", 1, token_ids=(1,))) is None
    chunk = builder.chunk(TextDelta("ab", 1, token_ids=(2,)))
    assert chunk is not None
    assert list(chunk.choices[0].token_ids) == [1, 2]


def test_logprob_has_the_text_bytes_and_id_of_its_token() -> None:
    half = "🎉".encode()[0]
    top = DecodedLogprob(b"a", -0.5, ord("a")), DecodedLogprob(bytes([half]), -math.inf, half)
    logprob = DecodedLogprob(b"a", -0.5, ord("a"), top)
    prompt = DecodedLogprob(b"p", None, ord("p")), logprob
    delta = TextDelta("a", 1, FinishReason.STOP, logprobs=(logprob,), prompt_logprobs=prompt)
    whole = completion([delta])
    [proto] = whole.choices[0].logprobs
    assert (proto.token, proto.token_bytes, proto.token_id) == ("a", b"a", ord("a"))
    assert proto.logprob == -0.5
    assert [top.token for top in proto.top] == ["a", "bytes:\\xf0"]
    assert proto.top[1].token_bytes == bytes([half])
    assert proto.top[1].logprob == -9999.0
    assert list(whole.prompt_logprobs) == [proto]
    chunk = encoder().chunk(delta)
    assert chunk is not None
    assert list(chunk.choices[0].logprobs) == [proto]
    assert list(chunk.prompt_logprobs) == [proto]


def test_counts_that_a_remote_backend_reports_replace_the_sums() -> None:
    reported = TokenUsage(11, 5, 3, 2)
    deltas = [
        TextDelta("Hi", 1, prompt_token_ids=(1, 2)),
        TextDelta("", 1, FinishReason.CONTENT_FILTER, usage=reported),
    ]
    remote = ChatEncoder(CARD, replace(REQUEST, returns_token_ids=True), Prompt())
    whole = remote.completion(deltas)
    expected = chat_pb2.Usage(
        prompt_tokens=11, completion_tokens=5, cached_prompt_tokens=3, reasoning_tokens=2
    )
    assert (whole.usage, list(whole.prompt_token_ids)) == (expected, [1, 2])
    assert whole.choices[0].finish_reason == chat_pb2.FINISH_REASON_CONTENT_FILTER
    remote = ChatEncoder(CARD, replace(REQUEST, returns_token_ids=True), Prompt())
    first, last = filter(None, map(remote.chunk, deltas))
    assert (first.usage.prompt_tokens, list(first.prompt_token_ids)) == (0, [1, 2])
    assert last.usage == expected
