"""Deltas to a completion and to chunks."""

from chatrpc.v1 import chat_pb2
from service.rpc.answers import ChunkBuilder, Heading, completion
from service.text.answer import TextDelta
from service.types import FinishReason
from tests.service.rpc.conftest import CARD

HEADING = Heading(CARD, num_prompt_tokens=7, id="chatcmpl-x", created=123)
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
