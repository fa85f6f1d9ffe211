"""The identity and the usage of a stream, collected from its chunks."""

import pytest
from msgspec import UNSET, UnsetType

from chatrpc.v1 import chat_pb2, completion_pb2
from gateway_http.convert.stream_state import StreamState
from gateway_http.protocol.sampling import StreamOptions

FIRST = completion_pb2.CompletionChunk(
    id="cmpl-1", choices=[completion_pb2.CompletionChoiceDelta(num_tokens=2)]
)
SECOND = completion_pb2.CompletionChunk(
    choices=[completion_pb2.CompletionChoiceDelta(num_tokens=1)]
)
LAST = completion_pb2.CompletionChunk(
    usage=chat_pb2.Usage(prompt_tokens=5, completion_tokens=3, cached_prompt_tokens=4)
)


def state_of(options: StreamOptions | None = None) -> StreamState[completion_pb2.CompletionChunk]:
    return StreamState(options, completion_pb2.CompletionChunk())


def test_identity_comes_from_the_first_chunk() -> None:
    state = state_of()
    state.add(FIRST, "public-name")
    state.add(SECOND, "other-name")
    assert (state.head.id, state.model) == ("cmpl-1", "public-name")


@pytest.mark.parametrize(
    ("options", "value"), [(None, UNSET), (StreamOptions(include_usage=True), None)]
)
def test_usage_so_far_is_null_only_if_a_final_usage_follows(
    options: StreamOptions | None, value: UnsetType | None
) -> None:
    state = state_of(options)
    state.add(FIRST, "")
    assert state.usage_so_far is value
    assert (state.final_usage is None) == (options is None)


def test_running_usage_counts_tokens_until_the_service_reports_usage() -> None:
    state = state_of(StreamOptions(include_usage=True, continuous_usage_stats=True))
    counts = []
    for chunk in (FIRST, SECOND, LAST):
        state.add(chunk, "")
        usage = state.usage_so_far
        assert usage is not None
        assert usage is not UNSET
        counts.append((usage.prompt_tokens, usage.completion_tokens))
    assert counts == [(0, 2), (0, 3), (5, 3)]
    assert state.final_usage == state.usage_so_far
