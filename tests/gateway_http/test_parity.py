"""docs/parity.md lists every field of both APIs, and each HTTP field sets its proto fields."""

import json
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import msgspec
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from chatrpc.v1 import (
    chat_pb2,
    chat_service_pb2,
    classification_service_pb2,
    completion_pb2,
    completion_service_pb2,
    decision_service_pb2,
    embedding_service_pb2,
    model_service_pb2,
)
from docs import parity
from gateway_http.convert import (
    anthropic_requests,
    classification,
    completions,
    decisions,
    embeddings,
    requests,
    responses_requests,
    tokens,
)
from gateway_http.protocol import (
    anthropic,
    completion,
    error,
    metadata,
    pooling,
    request,
    response,
    responses,
    responses_request,
    sampling,
)
from gateway_http.protocol import classification as classification_types
from gateway_http.protocol import decisions as decision_types
from gateway_http.protocol import embeddings as embedding_types
from gateway_http.protocol import tokens as token_types
from gateway_http.protocol.decode import decoder
from gateway_http.protocol.params import param_of
from tests.gateway_http.sample_bodies import (
    CHAT,
    CONVERSATION,
    DECISIONS,
    HI,
    MESSAGES,
    RESPONSES,
    TEXT,
    TOOL,
)

ROWS = parity.rows()
# All pairs of an HTTP field and one of its proto fields.
PAIRS = [(row.http, wire) for row in ROWS if row.http for wire in row.field.proto_fields]

STRUCTS = (
    request,
    sampling,
    completion,
    embedding_types,
    classification_types,
    pooling,
    decision_types,
    token_types,
    anthropic,
    response,
    responses_request,
    responses,
    metadata,
    error,
)
PROTOS = (
    chat_pb2,
    chat_service_pb2,
    classification_service_pb2,
    completion_pb2,
    completion_service_pb2,
    decision_service_pb2,
    embedding_service_pb2,
    model_service_pb2,
)

# The fields of these structs are listed with those of the structs that inherit from them.
PARTS_OF_OTHERS = {
    "Part",
    "Block",
    "Prompt",
    "AnyToolChoice",
    "ForeignParameters",
    "UnsupportedParameters",
    "PoolingRequest",
    "UnsupportedEmbeddingParameters",
    "UnsupportedRerankParameters",
    "UnsupportedScoreParameters",
    "UnsupportedClassifyParameters",
    "UnsupportedMessageParameters",
    "ResponsePart",
    "InputItem",
    "CallOutputItem",
    "ResponsePrompt",
    "UnsupportedResponseParameters",
    "ResponseEvent",
}
# The fields of these structs are listed once.
SHARED = (sampling.SamplingParameters, sampling.GenerationRequest)


def own_structs(module: ModuleType) -> dict[str, type[msgspec.Struct]]:
    return {
        name: kind
        for name, kind in vars(module).items()
        if isinstance(kind, type)
        and issubclass(kind, msgspec.Struct)
        and kind.__module__ == module.__name__
        and name not in PARTS_OF_OTHERS
        and not name.startswith("_")
    }


TWICE = {"Message", "ToolCall", "FunctionCall"}  # in requests and in responses
NAMES: dict[type[msgspec.Struct], str] = {
    kind: f"{module.__name__.rpartition('.')[2].capitalize()}{name}" if name in TWICE else name
    for module in STRUCTS
    for name, kind in own_structs(module).items()
}


def listed_name(struct: type[msgspec.Struct], field: str) -> str:
    """Return the name of a struct's field on the page."""
    shared = (each for each in SHARED if field in each.__struct_fields__)
    inherits = issubclass(struct, sampling.SamplingParameters)
    return f"{NAMES[next(shared, struct) if inherits else struct]}.{field}"


def struct_fields() -> set[str]:
    return {listed_name(kind, field) for kind in NAMES for field in kind.__struct_fields__}


def messages(descriptor: Descriptor) -> Iterator[Descriptor]:
    if not descriptor.GetOptions().map_entry:
        yield descriptor
        for nested in descriptor.nested_types:
            yield from messages(nested)


def wire_fields() -> set[str]:
    return {
        f"{descriptor.name}.{field.name}"
        for module in PROTOS
        for top in module.DESCRIPTOR.message_types_by_name.values()
        for descriptor in messages(top)
        for field in descriptor.fields
    }


def test_page_is_up_to_date() -> None:
    assert parity.PAGE.read_text() == parity.page(), "run `make docs`"


def test_rows_are_the_fields_of_the_http_api() -> None:
    assert {row.http for row in ROWS if row.http} == struct_fields()


def test_rows_are_the_fields_of_the_protos() -> None:
    assert {wire for row in ROWS for wire in row.field.proto_fields} == wire_fields()


FORMS = (
    {"structured_outputs": {"json": {"a": 1}}},
    {"structured_outputs": {"choice": ["a"]}},
    {"structured_outputs": {"grammar": "a"}},
    {"structured_outputs": {"json_object": True}},
    {"regex": "a"},
    {"ebnf": "a"},
    {"grammar": "a"},
    {"json_schema": {"a": 1}},
    {"enable_thinking": False},
    {"reasoning": {"effort": "low"}},
)
ALLOWED = {
    "tool_choice": {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [TOOL]},
    }
}
TOKENIZE = {
    "add_special_tokens": True,
    "add_special": True,
    "return_token_strs": True,
    "with_pieces": True,
}
OF_MESSAGES = {
    "add_generation_prompt": False,
    "continue_final_message": True,
    "chat_template_kwargs": {"a": 1},
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "reasoning_effort": "low",
}


POOLING: dict[str, Any] = {
    "truncate_prompt_tokens": 5,
    "truncation_side": "left",
    "priority": 1,
    "user": "u",
}
EMBEDDING = {"add_special_tokens": False, "normalize": True, "prompt_name": "query"}


def with_model(convert: Callable[[Any], Message]) -> Callable[[Any], Message]:
    """Return a conversion that sets the model, too, as the gateway does when it makes the call."""

    def converted(body: Any) -> Message:
        message: Any = convert(body)
        message.model = body.model or "first"
        return message  # type: ignore[no-any-return]

    return converted


Case = tuple[type[msgspec.Struct], dict[str, Any], Callable[[Any], Message]]


def cases() -> Iterator[Case]:
    chat: dict[str, Any] = {"model": "m", "messages": [HI]}
    text: dict[str, Any] = {"model": "m", "prompt": "x"}
    yield request.ChatCompletionRequest, chat, with_model(requests.params)
    yield (
        request.ChatCompletionRequest,
        chat | {"messages": CONVERSATION},
        with_model(requests.params),
    )
    for fields in (*({name: value} for name, value in CHAT.items()), *FORMS, ALLOWED):
        yield request.ChatCompletionRequest, chat | fields, with_model(requests.params)
    yield completion.CompletionRequest, text, with_model(completions.params)
    yield completion.CompletionRequest, text | {"prompt": [1]}, with_model(completions.params)
    for name, value in TEXT.items():
        yield completion.CompletionRequest, text | {name: value}, with_model(completions.params)

    for fields in MESSAGES:
        body = {"model": "m", "max_tokens": 5, "messages": [HI]} | fields
        yield anthropic.MessagesRequest, body, with_model(anthropic_requests.params)

    for fields in RESPONSES:
        body = {"model": "m", "input": "x"} | fields
        yield responses_request.ResponsesRequest, body, with_model(responses_requests.params)

    yield from computation_cases()

    yield from tokenize_cases()


def tokenize_cases() -> Iterator[Case]:
    def tokenize(body: token_types.TokenizeRequest) -> Message:
        return tokens.tokenize_request(body)

    for given in ({"prompt": "x"}, {"content": "x"}):
        yield token_types.TokenizeRequest, given | {"model": "m"}, with_model(tokenize)
        for name, value in TOKENIZE.items():
            yield token_types.TokenizeRequest, given | {name: value}, with_model(tokenize)
    for name, wanted in OF_MESSAGES.items():
        yield token_types.TokenizeRequest, {"messages": [HI], name: wanted}, with_model(tokenize)


def computation_cases() -> Iterator[Case]:
    """Yield the cases of requests that generate nothing."""
    inputs: tuple[Any, ...] = ("a", ["a", "b"], [1, 2], [[1], [2]])
    for each in inputs:
        wanted = {"model": "m", "input": each, "dimensions": 2} | POOLING
        convert = with_model(embeddings.embeddings_request)
        yield embedding_types.EmbeddingsRequest, wanted | EMBEDDING, convert
        wanted = {"model": "m", "input": each, "use_activation": False} | POOLING
        wanted["add_special_tokens"] = False
        convert = with_model(classification.classify_request)
        yield classification_types.ClassifyRequest, wanted, convert
    named = {"model": "m", "input": "a", "input_type": "query"}
    yield embedding_types.EmbeddingsRequest, named, with_model(embeddings.embeddings_request)
    ranked = {
        "model": "m",
        "query": "a",
        "documents": ["b", {"text": "c"}],
        "top_n": 1,
        "max_tokens_per_doc": 5,
        "use_activation": False,
    } | POOLING
    rerank = with_model(classification.rerank_request)
    yield classification_types.RerankRequest, ranked, rerank
    for first, second in (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")):
        pair = {"model": "m", first: "a", second: ["b", "c"], "use_activation": False} | POOLING
        yield classification_types.ScoreRequest, pair, with_model(classification.score_request)
    items = {"model": "m", "queries": "a", "items": "b"}
    yield classification_types.ScoreRequest, items, with_model(classification.score_request)

    for each in DECISIONS:
        convert = with_model(decisions.decision_request)
        yield decision_types.DecisionRequest, {"model": "m"} | each, convert


def given_fields(value: Any) -> Iterator[str]:
    """Yield the fields of the structs in a request that are not null."""
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            held = getattr(value, name)
            if held is not None:
                yield listed_name(type(value), name)
                yield from given_fields(held)
    elif isinstance(value, list):
        for item in value:
            yield from given_fields(item)


def set_fields(message: Message) -> Iterator[str]:
    """Yield the fields of the messages in a message that are set."""
    for field, value in message.ListFields():
        yield f"{message.DESCRIPTOR.name}.{field.name}"
        kind = field.message_type
        if kind is not None and not kind.GetOptions().map_entry:
            for item in value if field.is_repeated else [value]:
                yield from set_fields(item)


def arrivals() -> list[tuple[set[str], set[str]]]:
    """Return the HTTP fields that are set and the proto fields that are set, for each case."""
    found = []
    for kind, body, convert in cases():
        decoded = decoder(kind)(json.dumps(body).encode())
        found.append((set(given_fields(decoded)), set(set_fields(convert(decoded)))))
    return found


ARRIVALS = arrivals()
ASKED = {name for given, _ in ARRIVALS for name in given}


@pytest.mark.parametrize(("http", "wire"), [pair for pair in PAIRS if pair[0] in ASKED])
def test_field_of_request_sets_its_proto_field(http: str, wire: str) -> None:
    assert any(http in given and wire in told for given, told in ARRIVALS)


@pytest.mark.parametrize("name", sorted({*CHAT}))
def test_only_its_field_sets_a_proto_field(name: str) -> None:
    http = listed_name(request.ChatCompletionRequest, name)
    plain = next(told for given, told in ARRIVALS if "ChatCompletionRequest.messages" in given)
    assert not {wire for each, wire in PAIRS if each == http} & plain


def test_cases_have_every_field_of_requests_that_has_a_proto_field() -> None:
    requests_of_ours = {
        name
        for kind, name in NAMES.items()
        if kind.__module__ in {request.__name__, sampling.__name__}
    } | {"CompletionRequest", "EmbeddingsRequest", "TokenizeRequest", "MessagesRequest"}
    requests_of_ours |= {"ResponsesRequest", "TextOptions", "ReasoningOptions", "DecisionRequest"}
    requests_of_ours |= {"RerankRequest", "ScoreRequest", "ClassifyRequest"}
    assert {http for http, _ in PAIRS if http.split(".")[0] in requests_of_ours} <= ASKED


# The paths of messages within a request, in the notation of errors.
PATHS = {
    "ChatCompletionParams": "",
    "CompletionParams": "",
    "SamplingParams": "sampling.",
    "PromptOptions": "prompt.",
    "DetokenizeRequest": "",
    "CreateEmbeddingsRequest": "",
    "CreateDecisionRequest": "",
    "ClassifyRequest": "",
    "RerankRequest": "",
    "Truncation": "truncation.",
    "DecisionQuestion": "questions[0].",
    "ChoiceQuestion": "questions[0].choice.",
    "DecisionChoice": "questions[0].choice.choices[0].",
    "ScoreQuestion": "questions[0].score.",
    "DecisionLevel": "questions[0].score.levels[0].",
    "TextInputs": "text_inputs.",
    "TokenInputs": "token_inputs.",
}


@pytest.mark.parametrize("wire", sorted({wire for _, wire in PAIRS if wire.split(".")[0] in PATHS}))
def test_error_names_an_http_field_of_the_proto_field(wire: str) -> None:
    message, _, field = wire.partition(".")
    names = {http.rpartition(".")[2] for http, each in PAIRS if each == wire}
    sent_names = {"messages": "input"} if message == "CreateDecisionRequest" else {}
    assert param_of(PATHS[message] + field, sent_names).rpartition(".")[2] in names
