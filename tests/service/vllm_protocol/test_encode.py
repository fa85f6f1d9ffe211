"""Deltas become the protocol's messages."""

from typing import Any

from chatrpc.v1 import chat_pb2
from service.domain.backend import DecodedLogprob, TextDelta
from service.domain.engine import FinishReason
from service.vllm_protocol.decode import generate_params
from service.vllm_protocol.encode import GenerateEncoder
from tests.service.vllm_protocol.protocol_server import generate


def encoder(**fields: Any) -> Any:
    made = GenerateEncoder(generate_params(generate(request_id="r", **fields), "fake"))
    made.note_prompt(2)
    return made


def pushed(encode: GenerateEncoder, *deltas: TextDelta) -> list[Any]:
    """Push deltas, and return the messages that they complete."""
    for each in deltas:
        encode.push(each)
    return list(encode.take())


def delta(*token_ids: int, **fields: Any) -> TextDelta:
    return TextDelta(num_tokens=len(token_ids), token_ids=token_ids, **fields)


def logprob(token_id: int, value: float | None, *top: tuple[int, float]) -> DecodedLogprob:
    alternatives = tuple(DecodedLogprob(b"x", each, alternative) for alternative, each in top)
    return DecodedLogprob(b"x", value, token_id, alternatives)


def test_stream_has_chunks_and_a_complete_for_each_sequence() -> None:
    encode = encoder(stream=True, n=2)
    [first] = pushed(encode, delta(5, index=1, num_cached_tokens=1))
    assert (first.message.chunk.token_ids, first.message.chunk.index) == ([5], 1)
    assert (first.message.chunk.prompt_tokens, first.message.chunk.cached_tokens) == (2, 1)
    [chunk, complete] = pushed(
        encode, delta(6, 7, index=1, finish_reason=FinishReason.LENGTH, num_cached_tokens=1)
    )
    assert chunk.message.chunk.completion_tokens == 2
    assert complete.message.complete.output_ids == [5, 6, 7]
    assert complete.message.complete.completion_tokens == 3
    assert complete.message.complete.finish_reason == "length"
    assert complete.message.complete.index == 1
    assert not encode.is_finished
    encode.push(delta(8, finish_reason=FinishReason.STOP))
    assert encode.is_finished


def test_response_without_streaming_has_a_complete_for_each_sequence_at_the_end() -> None:
    encode = encoder(n=2)
    assert pushed(encode, delta(5, index=1, finish_reason=FinishReason.LENGTH)) == []
    outputs = pushed(encode, delta(6, 7, finish_reason=FinishReason.STOP, matched_stop=7))
    first, second = (output.message.complete for output in outputs)
    assert (first.index, first.output_ids, first.matched_token_id) == (0, [6, 7], 7)
    assert (second.index, second.output_ids, second.finish_reason) == (1, [5], "length")
    assert second.WhichOneof("matched_stop") is None


def test_stop_string_is_named() -> None:
    [output] = pushed(encoder(), delta(5, finish_reason=FinishReason.STOP, matched_stop="x"))
    assert output.message.complete.matched_stop_str == "x"


def test_log_probabilities_have_alternatives_if_requested() -> None:
    last = delta(
        5, finish_reason=FinishReason.STOP, logprobs=(logprob(5, -0.5, (5, -0.5), (6, -1.5)),)
    )
    [with_top] = pushed(encoder(logprobs=2), last)
    sent = with_top.message.complete.output_logprobs
    assert (sent.token_ids, sent.token_logprobs) == ([5], [-0.5])
    assert (sent.top_logprobs[0].token_ids, sent.top_logprobs[0].values) == ([5, 6], [-0.5, -1.5])
    [without] = pushed(encoder(logprobs=0), last)
    assert not without.message.complete.output_logprobs.top_logprobs


def test_first_token_of_a_prompt_has_no_log_probability() -> None:
    prompt = (logprob(1, None), logprob(2, -0.25, (3, -0.125)))
    [output] = pushed(
        encoder(prompt_logprobs=1),
        delta(5, finish_reason=FinishReason.STOP, prompt_logprobs=prompt),
    )
    sent = output.message.complete.input_logprobs
    assert [each.HasField("value") for each in sent.token_logprobs] == [False, True]
    assert sent.token_logprobs[1].value == -0.25
    assert sent.token_ids == [1, 2]
    assert [list(each.token_ids) for each in sent.top_logprobs] == [[], [3]]


def test_streamed_log_probabilities_are_in_the_chunks_only() -> None:
    chunk, complete = pushed(
        encoder(stream=True, logprobs=0),
        delta(5, finish_reason=FinishReason.STOP, logprobs=(logprob(5, -0.5),)),
    )
    assert chunk.message.chunk.output_logprobs.token_logprobs == [-0.5]
    assert not complete.message.complete.HasField("output_logprobs")


def test_delta_without_tokens_has_no_message() -> None:
    assert pushed(encoder(stream=True), TextDelta()) == []


def test_unfinished_sequences_of_an_aborted_response_end_with_abort() -> None:
    streamed = encoder(stream=True, n=2)
    streamed.push(delta(5, finish_reason=FinishReason.STOP))
    streamed.push(delta(6, index=1))
    assert len(list(streamed.take())) == 3
    streamed.abort()
    [output] = streamed.take()
    assert output.message.complete.finish_reason == "abort"
    assert (output.message.complete.index, output.message.complete.output_ids) == (1, [6])
    whole = encoder(n=2)
    whole.push(delta(5, finish_reason=FinishReason.STOP))
    whole.abort()
    reasons = [output.message.complete.finish_reason for output in whole.take()]
    assert reasons == ["stop", "abort"]


def test_aborted_response_keeps_the_messages_that_were_not_taken() -> None:
    encode = encoder(stream=True, n=2)
    encode.push(delta(5, finish_reason=FinishReason.STOP))
    encode.abort()
    chunk, *completes = [output.message for output in encode.take()]
    assert chunk.chunk.token_ids == [5]
    reasons = [(each.complete.index, each.complete.finish_reason) for each in completes]
    assert reasons == [(0, "stop"), (1, "abort")]


def test_telemetry_gets_the_tokens_of_each_chunk_and_the_usage_at_both_ends() -> None:
    encode = encoder(stream=True)
    [first] = pushed(encode, delta(5, num_cached_tokens=1))
    [middle] = pushed(encode, delta(6, 7, num_cached_tokens=1))
    last, complete = pushed(
        encode, delta(8, finish_reason=FinishReason.LENGTH, num_cached_tokens=1)
    )
    chunks: list[Any] = [first.reported, middle.reported, last.reported]
    assert [chunk.choices[0].num_tokens for chunk in chunks] == [1, 2, 1]
    assert [chunk.HasField("usage") for chunk in chunks] == [True, False, True]
    assert chunks[2].usage == chat_pb2.Usage(
        prompt_tokens=2, completion_tokens=4, cached_prompt_tokens=1
    )
    assert chunks[2].choices[0].finish_reason == chat_pb2.FINISH_REASON_LENGTH
    assert (chunks[0].id, chunks[0].model) == ("r", "fake")
    assert complete.reported is None


def test_telemetry_gets_a_whole_completion_once() -> None:
    encode = encoder(n=2)
    encode.push(delta(5, finish_reason=FinishReason.STOP))
    first, second = pushed(encode, delta(6, 7, index=1, finish_reason=FinishReason.LENGTH))
    completion: Any = first.reported
    assert completion.usage == chat_pb2.Usage(prompt_tokens=2, completion_tokens=3)
    assert [choice.finish_reason for choice in completion.choices] == [
        chat_pb2.FINISH_REASON_STOP,
        chat_pb2.FINISH_REASON_LENGTH,
    ]
    assert second.reported is None
