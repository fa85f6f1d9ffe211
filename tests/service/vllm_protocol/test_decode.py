"""Each field of a request has a decision: it is served, has no effect, or is rejected."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2

from service.domain.backend import ModelSpec
from service.domain.chat import ResponseFormatKind
from service.domain.completion import CompletionRequest
from service.domain.sampling import SamplingParams
from service.errors import ContextLengthExceeded, InvalidField, MissingField, UnsupportedField
from service.vllm_protocol.decode import (
    GenerateParams,
    GenerateReader,
    completion_request,
    generate_params,
    protocol_field,
)
from tests.service.vllm_protocol.protocol_server import PROMPT, generate

# The model's own defaults, which must not apply.
DEFAULTS = SamplingParams(
    temperature=0.3, top_p=0.5, top_k=7, min_p=0.2, repetition_penalty=1.5, stop=("never",)
)
SPEC = ModelSpec(max_model_len=100, max_sequences=300, sampling_defaults=DEFAULTS, vocab_size=257)

_Served = tuple[Any, Callable[[CompletionRequest], Any], Any]


def _format(request: CompletionRequest) -> Any:
    wanted = request.response_format
    return wanted and (wanted.kind, wanted.text)


# A value of each served sampling parameter, how the text completion has it, and the value there.
SERVED: dict[str, _Served] = {
    "temperature": (0.0, lambda r: r.sampling.temperature, 0.0),
    "top_p": (0.25, lambda r: r.sampling.top_p, 0.25),
    "top_k": (3, lambda r: r.sampling.top_k, 3),
    "min_p": (0.5, lambda r: r.sampling.min_p, 0.5),
    "frequency_penalty": (0.5, lambda r: r.sampling.frequency_penalty, 0.5),
    "presence_penalty": (-0.5, lambda r: r.sampling.presence_penalty, -0.5),
    "repetition_penalty": (1.25, lambda r: r.sampling.repetition_penalty, 1.25),
    "max_tokens": (9, lambda r: r.sampling.max_tokens, 9),
    "min_tokens": (2, lambda r: r.sampling.min_tokens, 2),
    "stop": (["a", "b"], lambda r: r.sampling.stop, ("a", "b")),
    "stop_token_ids": ([4, 5], lambda r: r.sampling.stop_token_ids, {4, 5}),
    "skip_special_tokens": (True, lambda r: r.sampling.skip_special_tokens, True),
    "ignore_eos": (True, lambda r: r.sampling.ignore_eos, True),
    "n": (3, lambda r: r.n, 3),
    "logprobs": (2, lambda r: r.num_logprobs, 2),
    "prompt_logprobs": (0, lambda r: r.num_prompt_logprobs, 0),
    "seed": (-7, lambda r: r.sampling.seed, -7),
    "include_stop_str_in_output": (
        True,
        lambda r: r.sampling.include_stop_str_in_output,
        True,
    ),
    "logit_bias": ({5: -1.5}, lambda r: r.sampling.logit_bias, {5: -1.5}),
    "truncate_prompt_tokens": (1, lambda r: r.truncate_prompt_tokens, 1),
    "json_schema": ("{}", _format, (ResponseFormatKind.JSON_SCHEMA, "{}")),
    "regex": ("a+", _format, (ResponseFormatKind.REGEX, "a+")),
    "grammar": ('root ::= "a"', _format, (ResponseFormatKind.GRAMMAR, 'root ::= "a"')),
    "json_object": (True, _format, (ResponseFormatKind.JSON_OBJECT, "")),
    "choice": (
        vllm_engine_pb2.ChoiceConstraint(choices=["a", "b"]),
        lambda r: r.response_format and r.response_format.choices,
        ("a", "b"),
    ),
}
WITHOUT_EFFECT = {"spaces_between_special_tokens": True, "grammar_from_first_token": True}
REJECTED_SAMPLING = {"structural_tag": "{}"}

SERVED_REQUEST = {"request_id", "tokenized", "text", "sampling_params", "stream"}
REJECTED_REQUEST: dict[str, Any] = {
    "kv_transfer_params": vllm_engine_pb2.KvTransferParams(remote_host="x"),
    "mm_inputs": vllm_engine_pb2.MultimodalInputs(mm_hashes=["x"]),
    "extra_mm_inputs": [vllm_engine_pb2.MultimodalInputs()],
    "kv_transfer_params_json": "{}",
    "data_parallel_rank": 1,
    "media_refs": vllm_engine_pb2.MediaRefs(
        items=[vllm_engine_pb2.MediaRef(modality=common_pb2.IMAGE, url="data:,x")]
    ),
}


def params(*token_ids: int, **fields: Any) -> GenerateParams:
    return generate_params(generate(token_ids or PROMPT, **fields), "fake")


def decoded(*token_ids: int, **fields: Any) -> CompletionRequest:
    return completion_request(params(*token_ids, **fields), SPEC)


def test_every_field_of_the_proto_has_a_decision() -> None:
    sampling = vllm_engine_pb2.SamplingParams.DESCRIPTOR.fields_by_name
    assert SERVED.keys() | WITHOUT_EFFECT.keys() | REJECTED_SAMPLING.keys() == set(sampling)
    request = vllm_engine_pb2.GenerateRequest.DESCRIPTOR.fields_by_name
    assert SERVED_REQUEST | REJECTED_REQUEST.keys() == set(request)


@pytest.mark.parametrize("name", SERVED)
def test_sampling_parameter_reaches_the_completion(name: str) -> None:
    value, read, expected = SERVED[name]
    assert read(decoded(**{name: value})) == expected
    assert read(decoded()) != expected


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_parameter_without_effect_is_accepted(name: str) -> None:
    assert decoded(**{name: WITHOUT_EFFECT[name]}) == decoded()


@pytest.mark.parametrize("name", REJECTED_SAMPLING)
def test_unsupported_sampling_parameter_is_rejected_by_its_name(name: str) -> None:
    with pytest.raises(UnsupportedField) as caught:
        params(**{name: REJECTED_SAMPLING[name]})
    assert caught.value.field == f"sampling_params.{name}"


@pytest.mark.parametrize("name", REJECTED_REQUEST)
def test_unsupported_field_is_rejected_by_its_name(name: str) -> None:
    with pytest.raises(InvalidField) as caught:
        params(**{name: REJECTED_REQUEST[name]})
    assert caught.value.field == name


def test_unset_parameters_have_the_defaults_of_the_protocol() -> None:
    request = decoded()
    assert request.sampling == SamplingParams(skip_special_tokens=False)
    assert (request.n, request.num_logprobs, request.num_prompt_logprobs) == (1, None, None)
    assert request.response_format is None
    assert request.truncate_prompt_tokens is None
    assert request.returns_token_ids


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"repetition_penalty": 1.5}, "sampling.repetition_penalty"),
        ({"n": 2}, "sampling.n"),
        ({"logprobs": 0}, "logprobs"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"regex": "a"}, "response_format.regex"),
        ({"max_tokens": 5}, "sampling.max_completion_tokens"),
    ],
)
def test_field_that_the_model_does_not_support_is_rejected(
    fields: dict[str, Any], path: str
) -> None:
    spec = replace(SPEC, unsupported_fields=frozenset({path}))
    with pytest.raises(UnsupportedField) as caught:
        completion_request(params(**fields), spec)
    [name] = fields
    assert protocol_field(caught.value.field) == f"sampling_params.{name}"


def test_default_value_of_an_unsupported_field_is_accepted() -> None:
    spec = replace(SPEC, unsupported_fields=frozenset({"sampling.repetition_penalty"}))
    assert completion_request(params(repetition_penalty=1.0), spec) == decoded()


def test_number_of_alternatives_is_limited_by_the_model() -> None:
    with pytest.raises(InvalidField, match="must be between 0 and 5"):
        completion_request(params(logprobs=6), replace(SPEC, max_logprobs=5))


def test_schemas_are_enforced_exactly() -> None:
    wanted = decoded(json_schema='{"type": "string"}').response_format
    assert wanted is not None
    assert wanted.is_strict


def test_seed_of_minus_one_is_no_seed() -> None:
    assert decoded(seed=-1).sampling.seed is None


def test_rank_zero_is_accepted() -> None:
    assert decoded(data_parallel_rank=0) == decoded()


def test_truncation_to_the_context_leaves_room_for_the_output() -> None:
    assert decoded(truncate_prompt_tokens=-1).truncate_prompt_tokens == 99
    assert decoded(truncate_prompt_tokens=-1, max_tokens=10).truncate_prompt_tokens == 90
    assert decoded(truncate_prompt_tokens=-1, max_tokens=1000).truncate_prompt_tokens == 1
    assert decoded(*[1] * 200, truncate_prompt_tokens=50).truncate_prompt_tokens == 50


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"max_tokens": 0}, "sampling_params.max_tokens"),
        ({"n": 129}, "sampling_params.n"),
        ({"temperature": 2.5}, "sampling_params.temperature"),
        ({"logprobs": -1}, "sampling_params.logprobs"),
        ({"prompt_logprobs": 21}, "sampling_params.prompt_logprobs"),
        ({"truncate_prompt_tokens": 0}, "sampling_params.truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "sampling_params.truncate_prompt_tokens"),
        ({"logit_bias": {-1: 1.0}}, "sampling_params.logit_bias"),
        ({"logit_bias": {257: 1.0}}, "sampling_params.logit_bias"),
        ({"stop_token_ids": [257]}, "sampling_params.stop_token_ids[0]"),
        ({"json_object": False}, "sampling_params.json_object"),
        ({"min_tokens": 3, "max_tokens": 2}, "sampling_params.min_tokens"),
        ({"token_ids": (1, 257)}, "tokenized.input_ids[1]"),
        ({"token_ids": ()}, "tokenized.input_ids"),
    ],
)
def test_invalid_value_is_rejected_by_the_name_in_the_protocol(
    fields: dict[str, Any], name: str
) -> None:
    with pytest.raises(InvalidField) as caught:
        completion_request(generate_params(generate(**fields), "fake"), SPEC)
    assert protocol_field(caught.value.field) == name


def test_prompt_is_required() -> None:
    with pytest.raises(MissingField) as caught:
        generate_params(vllm_engine_pb2.GenerateRequest(), "fake")
    assert caught.value.field == "input"


def test_prompt_that_fills_the_context_is_rejected() -> None:
    with pytest.raises(ContextLengthExceeded) as caught:
        decoded(*[1] * 100)
    assert caught.value.field == "tokenized.input_ids"


def test_text_is_tokenized_with_special_tokens() -> None:
    request = decoded(text="hi")
    assert (request.prompts, request.adds_special_tokens) == (("hi",), True)


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("sampling.max_completion_tokens", "sampling_params.max_tokens"),
        ("response_format.json_schema.schema_json", "sampling_params.json_schema"),
        ("response_format.choice.choices[1]", "sampling_params.choice.choices[1]"),
        ("response_format.regex", "sampling_params.regex"),
        ("logprobs", "sampling_params.logprobs"),
        ("prompt_logprobs", "sampling_params.prompt_logprobs"),
        ("text[0]", "text"),
        ("tokenized.input_ids[0]", "tokenized.input_ids"),
        ("messages", "input"),
        ("request", "request"),
    ],
)
def test_field_of_an_error_has_its_name_in_the_protocol(field: str, name: str) -> None:
    assert protocol_field(field) == name


def test_reader_parses_a_message_for_the_served_model() -> None:
    reader = GenerateReader(lambda: "fake")
    request = generate(request_id="r", stream=True)
    assert reader.FromString(request.SerializeToString()) == generate_params(request, "fake")
    assert reader.DESCRIPTOR is request.DESCRIPTOR
