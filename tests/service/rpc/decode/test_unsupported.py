"""Fields that are not supported are rejected, never ignored."""

from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from chatrpc.v1 import chat_pb2
from service.errors import InvalidField, UnsupportedField
from service.rpc.decode.unsupported import check_model_supports, check_unsupported
from tests.support.grpc_server import params

# The path of each field that is supported, or accepted without an effect.
SERVED = {
    "model",
    "messages",
    "reasoning_effort",
    "cache_salt",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "user",
    "safety_identifier",
    "metadata",
    "store",
    "prompt_cache_key",
    "service_tier",
    "verbosity",
    "prompt.chat_template_kwargs_json",
    "prompt.add_generation_prompt",
    "sampling.temperature",
    "sampling.top_p",
    "sampling.top_k",
    "sampling.min_p",
    "sampling.max_completion_tokens",
    "sampling.seed",
    "sampling.stop",
    "sampling.stop_token_ids",
    "sampling.ignore_eos",
    "sampling.allowed_token_ids",
    "sampling.bad_words",
    "sampling.skip_special_tokens",
    "sampling.include_stop_str_in_output",
    "sampling.logit_bias",
    "sampling.n",
    "sampling.min_tokens",
    "sampling.repetition_penalty",
    "sampling.frequency_penalty",
    "sampling.presence_penalty",
    "prompt.truncate_prompt_tokens",
    "prompt.continue_final_message",
    "priority",
    "prompt_logprobs",
    "return_token_ids",
    "top_logprobs",
    "logprobs",
}

# A request for each of the other fields.
UNSUPPORTED: dict[str, chat_pb2.ChatCompletionParams] = {
    "modalities": params(modalities=[chat_pb2.MODALITY_TEXT, chat_pb2.MODALITY_AUDIO]),
    "audio": params(audio=chat_pb2.AudioOutput()),
    "prediction": params(prediction=chat_pb2.Prediction()),
}


def paths(message: type[Message], prefix: str = "") -> set[str]:
    found = set()
    for field in message.DESCRIPTOR.fields:
        if field.name in {"sampling", "prompt"}:
            found |= paths(type(getattr(message(), field.name)), f"{field.name}.")
        else:
            assert isinstance(field, FieldDescriptor)
            found.add(prefix + field.name)
    return found


def test_every_field_of_the_proto_is_served_or_unsupported() -> None:
    assert paths(chat_pb2.ChatCompletionParams) == SERVED | set(UNSUPPORTED)
    assert not SERVED & set(UNSUPPORTED)


@pytest.mark.parametrize("path", UNSUPPORTED)
def test_unsupported_field_is_rejected_with_its_name(path: str) -> None:
    with pytest.raises(UnsupportedField) as caught:
        check_unsupported(UNSUPPORTED[path])
    assert caught.value.field == path
    assert path.rpartition(".")[-1] in str(caught.value)


def test_fields_with_their_default_values_are_accepted() -> None:
    check_unsupported(
        params(
            logprobs=False,
            priority=0,
            modalities=[chat_pb2.MODALITY_TEXT],
        )
    )


AUTO = chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_AUTO)
NONE = chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_NONE)
REQUIRED = chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_REQUIRED)


@pytest.mark.parametrize(
    ("path", "neutral", "given"),
    [
        ("tool_choice", {"tool_choice": AUTO}, {"tool_choice": REQUIRED}),
        ("tool_choice", {"tool_choice": NONE}, {"tool_choice": {"function_name": "f"}}),
        ("parallel_tool_calls", {"parallel_tool_calls": True}, {"parallel_tool_calls": False}),
        ("return_token_ids", {"return_token_ids": False}, {"return_token_ids": True}),
        ("cache_salt", {"cache_salt": ""}, {"cache_salt": "a"}),
        ("tools", {"tools": []}, {"tools": [chat_pb2.Tool()]}),
        ("reasoning_effort", {"reasoning_effort": 0}, {"reasoning_effort": 1}),
        ("prompt_logprobs", {}, {"prompt_logprobs": 0}),
        ("sampling.seed", {"sampling": {}}, {"sampling": {"seed": 0}}),
        (
            "sampling.temperature",
            {"sampling": {"temperature": 1}},
            {"sampling": {"temperature": 0}},
        ),
        ("sampling.logit_bias", {"sampling": {}}, {"sampling": {"logit_bias": {1: 1}}}),
        (
            "prompt.add_generation_prompt",
            {"prompt": {"add_generation_prompt": True}},
            {"prompt": {"add_generation_prompt": False}},
        ),
        (
            "response_format.regex",
            {"response_format": {"text": {}}},
            {"response_format": {"regex": ""}},
        ),
    ],
)
def test_field_that_a_model_does_not_support_may_have_only_neutral_values(
    path: str, neutral: dict[str, Any], given: dict[str, Any]
) -> None:
    check_model_supports(params(), [path])
    check_model_supports(params(**neutral), [path])
    with pytest.raises(UnsupportedField) as caught:
        check_model_supports(params(**given), [path])
    assert caught.value.field == path


def test_field_of_other_parameters_is_skipped() -> None:
    check_model_supports(params(), ["suffix", "no_message.field"])


@pytest.mark.parametrize(
    "metadata", [{str(i): "" for i in range(17)}, {"k" * 65: ""}, {"k": "v" * 513}]
)
def test_metadata_above_its_limits_is_rejected(metadata: dict[str, str]) -> None:
    with pytest.raises(InvalidField) as caught:
        check_unsupported(params(metadata=metadata))
    assert caught.value.field == "metadata"


@pytest.mark.parametrize("name", ["user", "safety_identifier", "prompt_cache_key", "service_tier"])
def test_long_value_of_an_unused_field_is_rejected(name: str) -> None:
    check_unsupported(params(**{name: "x" * 512}))
    with pytest.raises(InvalidField) as caught:
        check_unsupported(params(**{name: "x" * 513}))
    assert caught.value.field == name
