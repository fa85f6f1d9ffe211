"""A model that does not serve every field: requests are rejected, and clients can see it."""

from dataclasses import replace
from typing import Any

import grpc
import pytest

from chatrpc.v1 import (
    chat_pb2,
    chat_service_pb2,
    completion_pb2,
    completion_service_pb2,
    model_service_pb2,
)
from service.domain.backend import ServedModel
from service.domain.engine import EngineCapabilities
from service.generation.local_backend import locally_served
from tests.fakes.embeddings import FakeEmbeddings
from tests.fakes.remote_backend import RemoteBackend
from tests.support.grpc_server import CARD, Running, params
from tests.support.rpc_errors import rpc_error

UNSUPPORTED = frozenset(
    ("priority", "bad_token_sequences", "num_prompt_logprobs", "top_k", "seed", "n", "max_tokens")
)
PATHS = [
    "priority",
    "prompt_logprobs",
    "response_format.choice",
    "response_format.grammar",
    "response_format.json_object",
    "response_format.json_schema",
    "response_format.regex",
    "sampling.bad_words",
    "sampling.max_completion_tokens",
    "sampling.n",
    "sampling.seed",
    "sampling.top_k",
]


@pytest.fixture
async def limited(starting: Running) -> Running:
    """Return a server of a model whose engine lacks some fields."""
    starting.engine.capabilities = EngineCapabilities("small", UNSUPPORTED, max_logprobs=5)
    starting.engine.answer("ok")
    await starting.lifecycle.serve(locally_served(starting.model))
    return starting


def text(**fields: Any) -> completion_pb2.CompletionParams:
    prompts = [completion_pb2.CompletionPrompt(text="hi")]
    return completion_pb2.CompletionParams(model="fake", prompts=prompts, **fields)


def call(running: Running, given: Any) -> Any:
    if isinstance(given, chat_pb2.ChatCompletionParams):
        chat = chat_service_pb2.CreateChatCompletionRequest(params=given)
        return running.chat.CreateChatCompletion(chat)
    request = completion_service_pb2.CreateCompletionRequest(params=given)
    return running.completions.CreateCompletion(request)


@pytest.mark.parametrize("kind", [params, text])
@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"priority": 1}, "priority"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"response_format": {"json_object": {}}}, "response_format.json_object"),
        ({"response_format": {"regex": "a"}}, "response_format.regex"),
        ({"sampling": {"bad_words": ["x"]}}, "sampling.bad_words"),
        ({"sampling": {"max_completion_tokens": 5}}, "sampling.max_completion_tokens"),
        ({"sampling": {"n": 2}}, "sampling.n"),
        ({"sampling": {"seed": 0}}, "sampling.seed"),
        ({"sampling": {"top_k": 5}}, "sampling.top_k"),
    ],
)
async def test_unsupported_field_is_rejected_before_the_engine(
    limited: Running, kind: Any, fields: dict[str, Any], path: str
) -> None:
    rejected = await rpc_error(call(limited, kind(**fields)))
    assert rejected.code == grpc.StatusCode.INVALID_ARGUMENT
    assert (rejected.reason, rejected.fields) == ("UNSUPPORTED_FIELD", [path])
    assert limited.engine.requests == []


@pytest.mark.parametrize("kind", [params, text])
async def test_neutral_value_of_an_unsupported_field_is_accepted(
    limited: Running, kind: Any
) -> None:
    sampling = chat_pb2.SamplingParams(n=1, top_k=0, temperature=0.5)
    text_format = chat_pb2.ResponseFormat(text=chat_pb2.TextFormat())
    await call(limited, kind(priority=0, sampling=sampling, response_format=text_format))
    assert len(limited.engine.requests) == 1


async def test_echoed_log_probabilities_need_those_of_the_prompt(limited: Running) -> None:
    rejected = await rpc_error(call(limited, text(echo=True, logprobs=0)))
    assert (rejected.reason, rejected.fields) == ("UNSUPPORTED_FIELD", ["echo"])
    await call(limited, text(echo=True))
    await call(limited, text(logprobs=0))


@pytest.mark.parametrize(
    ("given", "field"),
    [(params(logprobs=True, top_logprobs=6), "top_logprobs"), (text(logprobs=6), "logprobs")],
)
async def test_alternatives_above_the_maximum_of_the_model_are_rejected(
    limited: Running, given: Any, field: str
) -> None:
    rejected = await rpc_error(call(limited, given))
    assert (rejected.reason, rejected.fields) == ("INVALID_FIELD", [field])
    assert "between 0 and 5" in rejected.message


async def test_forced_tool_call_without_structured_outputs_is_rejected(limited: Running) -> None:
    tool = chat_pb2.Tool(function=chat_pb2.FunctionDefinition(name="f"))
    forced = chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_REQUIRED)
    rejected = await rpc_error(call(limited, params(tools=[tool], tool_choice=forced)))
    assert (rejected.reason, rejected.fields) == ("UNSUPPORTED_FIELD", ["tools"])


async def model_of(running: Running, name: str) -> model_service_pb2.Model:
    response = await running.models.GetModel(model_service_pb2.GetModelRequest(id=name))
    return response.model


async def test_model_shows_its_engine_and_capabilities(limited: Running) -> None:
    shown = await model_of(limited, "fake")
    assert shown.engine == CARD.engine == "fake"
    assert shown.capabilities == model_service_pb2.ModelCapabilities(
        unsupported_fields=PATHS,
        input_modalities=[chat_pb2.MODALITY_TEXT],
        tokenization=True,
        max_logprobs=5,
        tasks=[model_service_pb2.MODEL_TASK_GENERATE],
        output_modalities=[chat_pb2.MODALITY_TEXT],
        tools=True,
        reasoning=False,
    )
    listed = await limited.models.ListModels(model_service_pb2.ListModelsRequest())
    assert list(listed.models) == [shown]


async def test_capabilities_of_a_remote_backend_are_those_of_its_spec(running: Running) -> None:
    backend = RemoteBackend(takes_images=True, unsupported_fields=frozenset({"logprobs"}))
    await running.lifecycle.serve(ServedModel(CARD, backend, backend, FakeEmbeddings()))
    shown = (await model_of(running, "fake")).capabilities
    assert shown == model_service_pb2.ModelCapabilities(
        unsupported_fields=["logprobs"],
        input_modalities=[chat_pb2.MODALITY_TEXT, chat_pb2.MODALITY_IMAGE],
        embeddings=True,
        embedding_dimensions=3,
        structured_outputs=True,
        tasks=[model_service_pb2.MODEL_TASK_GENERATE, model_service_pb2.MODEL_TASK_EMBED],
        output_modalities=[chat_pb2.MODALITY_TEXT],
        tools=True,
    )


@pytest.mark.parametrize(
    ("reported", "shown"), [(None, CARD.max_model_len - 1), (7, 7), (10**9, CARD.max_model_len - 1)]
)
async def test_output_limit_is_the_backends_within_the_context(
    running: Running, reported: int | None, shown: int
) -> None:
    card = replace(CARD, max_output_tokens=reported, quantization="int8")
    await running.lifecycle.serve(ServedModel(card, RemoteBackend()))
    model = await model_of(running, "fake")
    assert (model.max_output_tokens, model.quantization) == (shown, "int8")


async def test_tools_that_are_rejected_are_no_capability(running: Running) -> None:
    backend = RemoteBackend(unsupported_fields=frozenset({"tools"}), has_reasoning=True)
    await running.lifecycle.serve(ServedModel(CARD, backend, backend))
    shown = (await model_of(running, "fake")).capabilities
    assert (shown.tools, shown.reasoning) == (False, True)
