"""Converts the reason for the end of a choice to protobuf."""

from chatrpc.v1 import chat_pb2
from service.domain.engine import FinishReason

_FINISH_REASONS = {
    FinishReason.STOP: chat_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: chat_pb2.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: chat_pb2.FINISH_REASON_TOOL_CALLS,
    FinishReason.CONTENT_FILTER: chat_pb2.FINISH_REASON_CONTENT_FILTER,
}


def finish_reason(reason: FinishReason | None) -> chat_pb2.FinishReason.ValueType:
    """Return a finish reason; unspecified for a choice that has not ended."""
    return chat_pb2.FINISH_REASON_UNSPECIFIED if reason is None else _FINISH_REASONS[reason]


def matched_stop(matched: str | int | None) -> chat_pb2.MatchedStop | None:
    """Return the stop string or stop token that ended a choice; None if none did."""
    if matched is None:
        return None
    if isinstance(matched, str):
        return chat_pb2.MatchedStop(text=matched)
    return chat_pb2.MatchedStop(token_id=matched)
