"""Refuse, never ignore."""

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from chatrpc.v1 import chat_pb2
from service.errors import InvalidField, UnsupportedField
from service.rpc.options import refuse_unserved
from tests.service.rpc.conftest import params

# Every field of the wire's request, by its path, that this service honours or takes without effect.
SERVED = {
    "model",
    "messages",
    "reasoning_effort",
    "cache_salt",
    "parallel_tool_calls",
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
}

# What asks for each of the others.
ASKING: dict[str, chat_pb2.ChatCompletionParams] = {
    "tools": params(tools=[chat_pb2.Tool()]),
    "tool_choice": params(tool_choice=chat_pb2.ToolChoice(function_name="f")),
    "response_format": params(
        response_format=chat_pb2.ResponseFormat(json_object=chat_pb2.JsonObjectFormat())
    ),
    "logprobs": params(logprobs=True),
    "top_logprobs": params(top_logprobs=0),
    "return_token_ids": params(return_token_ids=True),
    "prompt_logprobs": params(prompt_logprobs=0),
    "priority": params(priority=-1),
    "modalities": params(modalities=[chat_pb2.MODALITY_TEXT, chat_pb2.MODALITY_AUDIO]),
    "audio": params(audio=chat_pb2.AudioOutput()),
    "prediction": params(prediction=chat_pb2.Prediction()),
    "prompt.continue_final_message": params(
        prompt=chat_pb2.PromptOptions(continue_final_message=True)
    ),
    "prompt.truncate_prompt_tokens": params(
        prompt=chat_pb2.PromptOptions(truncate_prompt_tokens=0)
    ),
    **{
        f"sampling.{name}": params(sampling=chat_pb2.SamplingParams(**{name: value}))  # type: ignore[arg-type]
        for name, value in {
            "presence_penalty": 0.5,
            "frequency_penalty": -0.5,
            "repetition_penalty": 1.1,
            "min_tokens": 1,
            "n": 2,
            "logit_bias": {1: 5.0},
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "bad_words": ["x"],
            "allowed_token_ids": [1],
        }.items()
    },
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
        refuse_unserved(ASKING[path])
    assert caught.value.field == path
    assert path.rpartition(".")[-1] in str(caught.value)


def test_a_value_that_asks_for_nothing_special_is_served() -> None:
    refuse_unserved(
        params(
            logprobs=False,
            priority=0,
            modalities=[chat_pb2.MODALITY_TEXT],
            response_format=chat_pb2.ResponseFormat(text=chat_pb2.TextFormat()),
            tool_choice=chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_AUTO),
            sampling=chat_pb2.SamplingParams(
                presence_penalty=0,
                frequency_penalty=0,
                repetition_penalty=1,
                n=1,
                min_tokens=0,
                skip_special_tokens=True,
            ),
        )
    )


@pytest.mark.parametrize(
    "metadata", [{str(i): "" for i in range(17)}, {"k" * 65: ""}, {"k": "v" * 513}]
)
def test_metadata_is_bounded(metadata: dict[str, str]) -> None:
    with pytest.raises(InvalidField) as caught:
        refuse_unserved(params(metadata=metadata))
    assert caught.value.field == "metadata"


@pytest.mark.parametrize("name", ["user", "safety_identifier", "prompt_cache_key", "service_tier"])
def test_what_is_only_noted_is_bounded(name: str) -> None:
    refuse_unserved(params(**{name: "x" * 512}))
    with pytest.raises(InvalidField) as caught:
        refuse_unserved(params(**{name: "x" * 513}))
    assert caught.value.field == name
