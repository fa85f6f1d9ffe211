"""The fields of requests that an engine does not serve."""

from dataclasses import fields

import pytest
from google.protobuf.descriptor import Descriptor

from chatrpc.v1 import chat_pb2, completion_pb2
from service.domain.engine import EngineCapabilities, Request
from service.domain.sampling import SamplingParams
from service.errors import ModelLoadError
from service.generation.request_fields import unsupported_fields

# Fields of an engine's request that no request of a client can set.
INTERNAL = {"prompt_token_ids", "sampling", "deadline", "caller", "given"}
FIELDS = {field.name for kind in (Request, SamplingParams) for field in fields(kind)}
NAMES = sorted(FIELDS - INTERNAL)


def has_field(message: Descriptor | None, path: str) -> bool:
    name, _, rest = path.partition(".")
    field = None if message is None else message.fields_by_name.get(name)
    return field is not None and (not rest or has_field(field.message_type, rest))


@pytest.mark.parametrize("name", NAMES)
def test_every_field_of_an_engine_has_paths_in_both_kinds_of_request(name: str) -> None:
    paths = unsupported_fields(EngineCapabilities("test", frozenset({name})))
    assert paths
    for path in paths:
        assert has_field(chat_pb2.ChatCompletionParams.DESCRIPTOR, path)
        assert has_field(completion_pb2.CompletionParams.DESCRIPTOR, path)


def test_engine_that_serves_every_field_has_no_unsupported_fields() -> None:
    assert unsupported_fields(EngineCapabilities("test")) == frozenset()


@pytest.mark.parametrize("name", ["mood", "caller", "given"])
def test_name_that_no_request_can_set_is_rejected(name: str) -> None:
    with pytest.raises(ModelLoadError, match=name):
        unsupported_fields(EngineCapabilities("test", frozenset({name})))
