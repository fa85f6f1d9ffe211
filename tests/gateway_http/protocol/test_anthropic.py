"""The fields of Anthropic's Messages API, compared with those of its SDK."""

from typing import Any, get_args

import pytest
from anthropic.types import (
    Message,
    MessageDeltaUsage,
    RawMessageStreamEvent,
    Usage,
    beta,
    message_count_tokens_params,
    message_create_params,
)
from msgspec import Struct

from gateway_http.protocol import anthropic

# Headers, which the SDK has as parameters, too.
_HEADERS = {"workspace_id", "user_profile_id", "betas"}


def fields(struct: type[Struct]) -> set[str]:
    return set(struct.__struct_fields__)


@pytest.mark.parametrize(
    ("struct", "params"),
    [
        (anthropic.MessagesRequest, message_create_params.MessageCreateParamsBase),
        (anthropic.MessagesRequest, beta.message_create_params.MessageCreateParamsBase),
        (anthropic.CountTokensRequest, message_count_tokens_params.MessageCountTokensParams),
    ],
)
def test_every_parameter_of_the_sdk_is_declared(struct: type[Struct], params: Any) -> None:
    assert set(params.__annotations__) - _HEADERS <= fields(struct)


@pytest.mark.parametrize(
    ("struct", "model", "absent"),
    [
        (anthropic.AssistantMessage, Message, {"diagnostics"}),
        (
            anthropic.MessageUsage,
            Usage,
            {"speed"},
        ),
        (anthropic.MessageUsage, MessageDeltaUsage, set()),
    ],
)
def test_every_field_of_the_sdk_is_returned_or_optional(
    struct: type[Struct], model: Any, absent: set[str]
) -> None:
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    assert required <= fields(struct)
    assert set(model.model_fields) - fields(struct) == absent


def test_every_event_of_the_sdk_is_sent() -> None:
    union = get_args(RawMessageStreamEvent)[0]
    events = {get_args(event.model_fields["type"].annotation)[0] for event in get_args(union)}
    ours = {event.__struct_config__.tag for event in anthropic.EVENTS}
    assert ours - events == {"ping", "error"}
    assert events <= ours
