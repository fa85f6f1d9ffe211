"""The structs of chat and text completions, beside the types of OpenAI's SDK."""

from typing import Any, get_type_hints

import pytest
from msgspec import Struct
from openai.types import Completion, CompletionChoice, CompletionUsage, completion_create_params
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionAssistantMessageParam,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
    ParsedChatCompletionMessage,
)
from openai.types.chat import (
    completion_create_params as chat_create_params,
)
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from openai.types.chat.parsed_function_tool_call import ParsedFunction
from openai.types.completion_usage import CompletionTokensDetails, PromptTokensDetails

from gateway_http.protocol import completion, request, response


@pytest.mark.parametrize(
    ("struct", "params"),
    [
        (request.ChatCompletionRequest, chat_create_params.CompletionCreateParamsBase),
        (completion.CompletionRequest, completion_create_params.CompletionCreateParamsBase),
        (request.Message, ChatCompletionUserMessageParam),
        (request.Message, ChatCompletionAssistantMessageParam),
        (request.Message, ChatCompletionToolMessageParam),
    ],
)
def test_every_parameter_of_the_sdk_is_declared(struct: type[Struct], params: Any) -> None:
    assert set(get_type_hints(params)) <= set(struct.__struct_fields__)


@pytest.mark.parametrize(
    ("struct", "model"),
    [
        (request.Message, ParsedChatCompletionMessage[object]),
        (request.FunctionCall, ParsedFunction),
    ],
)
def test_message_of_the_sdk_can_be_sent_back(struct: type[Struct], model: Any) -> None:
    assert set(model.model_fields) <= set(struct.__struct_fields__)


@pytest.mark.parametrize(
    ("struct", "model", "absent"),
    [
        (response.ChatCompletion, ChatCompletion, {"metadata", "moderation"}),
        (response.Choice, Choice, set()),
        (response.Message, ChatCompletionMessage, {"audio", "function_call"}),
        (response.ChatCompletionChunk, ChatCompletionChunk, {"moderation", "obfuscation"}),
        (response.ChunkChoice, ChunkChoice, set()),
        (response.Delta, ChoiceDelta, {"audio", "function_call"}),
        (response.Usage, CompletionUsage, set()),
        (
            response.PromptTokensDetails,
            PromptTokensDetails,
            {"audio_tokens", "cache_write_tokens", "image_tokens", "text_tokens"},
        ),
        (
            response.CompletionTokensDetails,
            CompletionTokensDetails,
            {
                "accepted_prediction_tokens",
                "audio_tokens",
                "rejected_prediction_tokens",
                "text_tokens",
            },
        ),
        (completion.Completion, Completion, set()),
        (completion.CompletionChoice, CompletionChoice, set()),
    ],
)
def test_every_field_of_the_sdk_is_returned_or_optional(
    struct: type[Struct], model: Any, absent: set[str]
) -> None:
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    assert required <= set(struct.__struct_fields__)
    assert set(model.model_fields) - set(struct.__struct_fields__) == absent
