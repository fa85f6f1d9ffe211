"""Refuse, never ignore."""

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from chatrpc.v1 import chat_pb2
from service.errors import InvalidField, UnsupportedField
from service.rpc.decode.unsupported import check_unsupported
from tests.support.grpc_server import params

# Every field of the wire's request, by its path, that this service honours or takes without effect.
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

# What asks for each of the others.
ASKING: dict[str, chat_pb2.ChatCompletionParams] = {
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


def test_every_field_of_the_wire_is_either_served_or_refused() -> None:
    assert paths(chat_pb2.ChatCompletionParams) == SERVED | set(ASKING)
    assert not SERVED & set(ASKING)


@pytest.mark.parametrize("path", ASKING)
def test_an_option_that_is_not_served_is_refused_by_name(path: str) -> None:
    with pytest.raises(UnsupportedField) as caught:
        check_unsupported(ASKING[path])
    assert caught.value.field == path
    assert path.rpartition(".")[-1] in str(caught.value)


def test_a_value_that_asks_for_nothing_special_is_served() -> None:
    check_unsupported(
        params(
            logprobs=False,
            priority=0,
            modalities=[chat_pb2.MODALITY_TEXT],
        )
    )


@pytest.mark.parametrize(
    "metadata", [{str(i): "" for i in range(17)}, {"k" * 65: ""}, {"k": "v" * 513}]
)
def test_metadata_is_bounded(metadata: dict[str, str]) -> None:
    with pytest.raises(InvalidField) as caught:
        check_unsupported(params(metadata=metadata))
    assert caught.value.field == "metadata"


@pytest.mark.parametrize("name", ["user", "safety_identifier", "prompt_cache_key", "service_tier"])
def test_what_is_only_noted_is_bounded(name: str) -> None:
    check_unsupported(params(**{name: "x" * 512}))
    with pytest.raises(InvalidField) as caught:
        check_unsupported(params(**{name: "x" * 513}))
    assert caught.value.field == name
