"""Converts the descriptions of models to OpenAI's JSON."""

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


def model(description: model_service_pb2.Model, name: str) -> openai.Model:
    """Convert the description of a model; `name` is its name for clients."""
    return openai.Model(
        id=name,
        created=description.create_time.seconds,
        owned_by=description.owned_by,
        max_model_len=description.max_model_len or UNSET,
        root=description.root or UNSET,
        engine=description.engine or UNSET,
        capabilities=_capabilities(description),
    )


def _capabilities(description: model_service_pb2.Model) -> openai.ModelCapabilities | UnsetType:
    """Return the capabilities; UNSET if the service does not report them."""
    if not description.HasField("capabilities"):
        return UNSET
    shown = description.capabilities
    return openai.ModelCapabilities(
        unsupported_parameters=sorted({param_of(path) for path in shown.unsupported_fields}),
        input_modalities=[_MODALITIES[m] for m in shown.input_modalities if m in _MODALITIES],
        embeddings=shown.embeddings,
        tokenization=shown.tokenization,
        structured_outputs=shown.structured_outputs,
        max_logprobs=shown.max_logprobs if shown.HasField("max_logprobs") else UNSET,
        is_batch_invariant=shown.is_batch_invariant,
    )
