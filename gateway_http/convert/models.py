"""Converts the descriptions of models to OpenAI's JSON."""

from collections.abc import Iterable, Sequence
from datetime import date
from typing import Literal

from msgspec import UNSET, UnsetType

from chatrpc.v1 import chat_pb2, model_service_pb2
from gateway_http.protocol import response as openai
from gateway_http.protocol.params import param_of

_MODALITIES: dict[int, Literal["text", "audio", "image"]] = {
    chat_pb2.MODALITY_TEXT: "text",
    chat_pb2.MODALITY_AUDIO: "audio",
    chat_pb2.MODALITY_IMAGE: "image",
}


_TASKS: dict[int, Literal["generate", "embed", "classify", "score"]] = {
    model_service_pb2.MODEL_TASK_GENERATE: "generate",
    model_service_pb2.MODEL_TASK_EMBED: "embed",
    model_service_pb2.MODEL_TASK_CLASSIFY: "classify",
    model_service_pb2.MODEL_TASK_SCORE: "score",
}


def model(
    description: model_service_pb2.Model,
    name: str,
    aliases: Sequence[str],
    shutdown_date: date | None = None,
) -> openai.Model:
    """Convert the description of a model.

    Args:
        description: The service's description.
        name: The model's name for clients.
        aliases: Its further names for clients.
        shutdown_date: The day after which it may no longer be served; None if none is announced.
    """
    max_model_len = description.max_model_len or UNSET
    max_output_tokens = description.max_output_tokens or UNSET
    tasks = description.capabilities.tasks
    return openai.Model(
        id=name,
        created=description.create_time.seconds,
        owned_by=description.owned_by,
        aliases=list(aliases),
        shutdown_date=None if shutdown_date is None else shutdown_date.isoformat(),
        max_model_len=max_model_len,
        context_length=max_model_len,
        context_window=max_model_len,
        max_output_tokens=max_output_tokens,
        max_completion_tokens=max_output_tokens,
        root=description.root or UNSET,
        engine=description.engine or UNSET,
        quantization=description.quantization or UNSET,
        tasks=[_TASKS[task] for task in tasks if task in _TASKS] or UNSET,
        capabilities=_capabilities(description),
    )


def _capabilities(description: model_service_pb2.Model) -> openai.ModelCapabilities | UnsetType:
    """Return the capabilities; UNSET if the service does not report them."""
    if not description.HasField("capabilities"):
        return UNSET
    shown = description.capabilities
    return openai.ModelCapabilities(
        unsupported_parameters=sorted({param_of(path) for path in shown.unsupported_fields}),
        input_modalities=_modalities(shown.input_modalities),
        embeddings=shown.embeddings,
        tokenization=shown.tokenization,
        structured_outputs=shown.structured_outputs,
        max_logprobs=shown.max_logprobs if shown.HasField("max_logprobs") else UNSET,
        is_batch_invariant=shown.is_batch_invariant,
        output_modalities=_modalities(shown.output_modalities),
        tools=shown.tools,
        reasoning=shown.reasoning if shown.HasField("reasoning") else UNSET,
    )


def _modalities(modalities: Iterable[int]) -> list[Literal["text", "audio", "image"]]:
    """Return the names of modalities, without those of later versions of the API."""
    return [_MODALITIES[each] for each in modalities if each in _MODALITIES]
