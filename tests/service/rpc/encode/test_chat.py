"""Deltas to a completion and to chunks."""

import math
from dataclasses import replace

from chatrpc.v1 import chat_pb2
from service.domain.engine import FinishReason, TokenLogprobs
from service.rpc.encode.chat import ChunkBuilder, Heading, completion
from service.text.output_text import TextDelta
from tests.fakes.tokenizer import ByteTokenizer
from tests.support.grpc_server import CARD

HEADING = Heading(CARD, ByteTokenizer(), b"prompt.", id="chatcmpl-x", created=123)
DELTAS = [
    TextDelta("Pa", 1, num_cached_tokens=4),
    TextDelta("", 2, num_cached_tokens=4),
    TextDelta("ris", 1, num_cached_tokens=4),
    TextDelta("", 1, FinishReason.STOP, "END", num_cached_tokens=4),
]


def usage(num_completion_tokens: int) -> chat_pb2.Usage:
    return chat_pb2.Usage(
        prompt_tokens=7, completion_tokens=num_completion_tokens, cached_prompt_tokens=4
    )


def test_a_completion_joins_its_deltas() -> None:
    whole = completion(HEADING, DELTAS)
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


def test_chunks_say_once_what_is_said_once() -> None:
    builder = ChunkBuilder(HEADING)
    chunks = [chunk for delta in DELTAS if (chunk := builder.push(delta)) is not None]
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


def test_tokens_whose_text_is_held_back_count_with_the_text_they_become() -> None:
    builder = ChunkBuilder(HEADING)
    chunks = [chunk for delta in DELTAS if (chunk := builder.push(delta)) is not None]
    assert [c.choices[0].num_tokens for c in chunks] == [1, 3, 1]


def test_an_answer_of_nothing_is_still_one_chunk() -> None:
    chunk = ChunkBuilder(HEADING).push(TextDelta("", 1, FinishReason.STOP))
    assert chunk is not None
    assert chunk.id == "chatcmpl-x"
    assert chunk.usage.completion_tokens == 1
    assert not chunk.choices[0].delta.HasField("content")


TWO = replace(HEADING, n=2, returns_token_ids=True)


def test_each_choice_has_its_own_deltas() -> None:
    deltas = [
        TextDelta("a", 1, index=0, token_ids=(1,)),
        TextDelta("x", 1, index=1, token_ids=(2,)),
        TextDelta("", 1, FinishReason.LENGTH, index=1, token_ids=(3,)),
        TextDelta("b", 1, FinishReason.STOP, index=0, token_ids=(4,)),
    ]
    whole = completion(TWO, deltas)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert [choice.message.content[0].text for choice in whole.choices] == ["ab", "x"]
    assert [list(choice.token_ids) for choice in whole.choices] == [[1, 4], [2, 3]]
    assert list(whole.prompt_token_ids) == list(b"prompt.")
    assert whole.usage.completion_tokens == 4

    builder = ChunkBuilder(TWO)
    chunks = [chunk for delta in deltas if (chunk := builder.push(delta)) is not None]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert [choice.index for choice in choices] == [0, 1, 1, 0]
    assert [bool(choice.delta.role) for choice in choices] == [True, True, False, False]
    assert [list(choice.token_ids) for choice in choices] == [[1], [2], [3], [4]]
    assert [chunk.HasField("usage") for chunk in chunks] == [True, False, False, True]
    assert chunks[-1].usage.completion_tokens == 4
    assert [list(chunk.prompt_token_ids) for chunk in chunks] == [list(b"prompt."), [], [], []]


def test_token_ids_are_told_to_those_who_ask_alone() -> None:
    delta = TextDelta("a", 1, FinishReason.STOP, token_ids=(1,))
    whole = completion(HEADING, [delta])
    assert (list(whole.prompt_token_ids), list(whole.choices[0].token_ids)) == ([], [])
    chunk = ChunkBuilder(HEADING).push(delta)
    assert chunk is not None
    assert list(chunk.choices[0].token_ids) == []


def test_token_ids_are_kept_back_with_their_text() -> None:
    builder = ChunkBuilder(TWO)
    assert builder.push(TextDelta("", 1, token_ids=(1,))) is None
    chunk = builder.push(TextDelta("ab", 1, token_ids=(2,)))
    assert chunk is not None
    assert list(chunk.choices[0].token_ids) == [1, 2]


def test_a_log_probability_names_its_token_by_text_bytes_and_id() -> None:
    half = "🎉".encode()[0]
    logprobs = TokenLogprobs(ord("a"), -0.5, ((ord("a"), -0.5), (half, -math.inf)))
    delta = TextDelta("a", 1, FinishReason.STOP, logprobs=(logprobs,), prompt_logprobs=(logprobs,))
    whole = completion(HEADING, [delta])
    [proto] = whole.choices[0].logprobs
    assert (proto.token, proto.token_bytes, proto.token_id) == ("a", b"a", ord("a"))
    assert proto.logprob == -0.5
    assert [top.token for top in proto.top] == ["a", "bytes:\\xf0"]
    assert proto.top[1].token_bytes == bytes([half])
    assert proto.top[1].logprob == -9999.0
    assert list(whole.prompt_logprobs) == [proto]
    chunk = ChunkBuilder(HEADING).push(delta)
    assert chunk is not None
    assert list(chunk.choices[0].logprobs) == [proto]
    assert list(chunk.prompt_logprobs) == [proto]
