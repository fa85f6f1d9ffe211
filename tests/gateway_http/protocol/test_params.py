"""The names that the proto's fields have in OpenAI's JSON."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from chatrpc.v1 import (
    chat_pb2,
    classification_service_pb2,
    completion_pb2,
    decision_service_pb2,
    embedding_service_pb2,
    model_service_pb2,
)
from gateway_http.protocol.classification import ClassifyRequest, RerankRequest
from gateway_http.protocol.completion import CompletionRequest
from gateway_http.protocol.embeddings import EmbeddingsRequest
from gateway_http.protocol.params import PARAMS, param_of
from gateway_http.protocol.request import ChatCompletionRequest
from gateway_http.protocol.tokens import DetokenizeRequest, TokenizeRequest

BODIES: list[tuple[Any, type[msgspec.Struct]]] = [
    (chat_pb2.ChatCompletionParams.DESCRIPTOR, ChatCompletionRequest),
    (completion_pb2.CompletionParams.DESCRIPTOR, CompletionRequest),
    (embedding_service_pb2.CreateEmbeddingsRequest.DESCRIPTOR, EmbeddingsRequest),
    (classification_service_pb2.ClassifyRequest.DESCRIPTOR, ClassifyRequest),
    (classification_service_pb2.RerankRequest.DESCRIPTOR, RerankRequest),
    (model_service_pb2.TokenizeRequest.DESCRIPTOR, TokenizeRequest),
    (model_service_pb2.DetokenizeRequest.DESCRIPTOR, DetokenizeRequest),
]
# In bodies of decisions, the names of messages depend on the form of `input`.
DESCRIPTORS = [
    *(descriptor for descriptor, _ in BODIES),
    decision_service_pb2.CreateDecisionRequest.DESCRIPTOR,
]
# Fields without a path of their own in a body: the gateway does not set them, the body chooses
# them by a tag, or the client's name depends on its request (`sent_names` in `convert`).
WITHOUT_PARAM = re.compile(
    r"(conversation\.)?.*\.image\.(data|mime_type)|response_format\.(text|json_object)|text"
    r"|pair_inputs.*|conversation|conversation\.prompt\.truncate_prompt_tokens"
)
ONEOFS = {"questions[].kind"}  # named by an error if none of its fields is set
LIMIT_OF_COMPLETIONS = "sampling.max_completion_tokens"  # `max_tokens` in a text completion


def field_paths(descriptor: Any, prefix: str = "") -> Iterator[str]:
    """Yield the paths of all fields in a message, with the index 0 for repeated ones."""
    for field in descriptor.fields:
        kind = field.message_type
        is_map = kind is not None and kind.GetOptions().map_entry
        path = f"{prefix}{field.name}" + ("[0]" if field.is_repeated and not is_map else "")
        yield path
        if kind is not None and not is_map and kind.full_name.startswith("chatrpc."):
            yield from field_paths(kind, f"{path}.")


def alternatives(kind: inspect.Type) -> list[inspect.Type]:
    if isinstance(kind, inspect.UnionType):
        return [each for one in kind.types for each in alternatives(one)]
    return alternatives(kind.type) if isinstance(kind, inspect.Metadata) else [kind]


def has_param(body: type[msgspec.Struct], param: str) -> bool:
    """Return whether the JSON of a body has this path."""
    kinds = [inspect.type_info(body)]
    for segment in re.findall(r"\w+|\[\d+\]", param):
        found: list[inspect.Type] = []
        for kind in (each for one in kinds for each in alternatives(one)):
            if segment.startswith("["):
                found += [kind.item_type] if isinstance(kind, inspect.ListType) else []
            elif isinstance(kind, inspect.StructType):
                found += [field.type for field in kind.fields if field.encode_name == segment]
        kinds = found
    return bool(kinds)


@pytest.mark.parametrize(("descriptor", "body"), BODIES)
def test_every_field_of_the_proto_has_a_param(descriptor: Any, body: type[msgspec.Struct]) -> None:
    for path in field_paths(descriptor):
        is_exception = WITHOUT_PARAM.fullmatch(path) or (
            body is CompletionRequest and path == LIMIT_OF_COMPLETIONS
        )
        assert has_param(body, param_of(path)) != bool(is_exception), path


@pytest.mark.parametrize("path", PARAMS)
def test_every_row_is_a_field_of_the_proto(path: str) -> None:
    paths = {
        field.removeprefix("conversation.").replace("[0]", "[]")
        for descriptor in DESCRIPTORS
        for field in field_paths(descriptor)
    }
    assert path in paths | ONEOFS | {field.removesuffix("[]") for field in paths}


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("model", "model"),
        ("messages", "messages"),
        ("messages[0].role", "messages[0].role"),
        ("messages[1].content[2].image", "messages[1].content[2].image_url"),
        ("messages[1].content[2].audio", "messages[1].content[2].input_audio"),
        (
            "messages[1].tool_calls[0].function.arguments_json",
            "messages[1].tool_calls[0].function.arguments",
        ),
        ("sampling.temperature", "temperature"),
        ("sampling.max_completion_tokens", "max_completion_tokens"),
        ("sampling.stop[0]", "stop[0]"),
        ("prompt.chat_template_kwargs_json", "chat_template_kwargs"),
        ("prompt.truncate_prompt_tokens", "truncate_prompt_tokens"),
        ("tools[0].function.parameters_json_schema", "tools[0].function.parameters"),
        ("tool_choice.function_name", "tool_choice"),
        ("response_format.json_schema.schema_json", "response_format.json_schema.schema"),
        (
            'response_format.json_schema.schema_json.properties["a.b"].schema_json.minimum',
            'response_format.json_schema.schema.properties["a.b"].schema_json.minimum',
        ),
        (
            "tools[3].function.parameters_json_schema.properties.arguments_json.pattern",
            "tools[3].function.parameters.properties.arguments_json.pattern",
        ),
        (
            "conversation.tools[0].function.parameters_json_schema",
            "tools[0].function.parameters",
        ),
        (
            "response_format.grammar.properties.a.type",
            "structured_outputs.grammar.properties.a.type",
        ),
        ("response_format.regex", "structured_outputs.regex"),
        ("response_format.choice.choices", "structured_outputs.choice"),
        ("audio", "audio"),
        ("prompts", "prompt"),
        ("prompts[0]", "prompt[0]"),
        ("prompts[1].text", "prompt[1]"),
        ("prompts[1].token_ids.ids", "prompt[1]"),
        ("prompts[1].token_ids.ids[3]", "prompt[1][3]"),
        ("conversation.messages[0].role", "messages[0].role"),
        ("conversation.prompt.continue_final_message", "continue_final_message"),
        ("token_ids[2]", "tokens[2]"),
        ("modalities[0]", "modalities[0]"),
    ],
)
def test_field_becomes_its_param(field: str, param: str) -> None:
    assert param_of(field) == param
