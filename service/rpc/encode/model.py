"""Converts a served model to a protobuf message."""

from google.protobuf.timestamp_pb2 import Timestamp

from chatrpc.v1 import chat_pb2, model_service_pb2
from chatrpc.v1.limits import LIMITS
from service.domain.backend import ServedModel
from service.domain.model import ModelCard
from service.domain.pooling import Task


def model_proto(model: ServedModel) -> model_service_pb2.Model:
    """Return the description of a model for clients."""
    card = model.card
    return model_service_pb2.Model(
        id=card.id,
        create_time=Timestamp(seconds=card.created),
        owned_by=card.owned_by,
        max_model_len=card.max_model_len,
        aliases=card.aliases,
        root=card.root,
        engine=card.engine,
        capabilities=_capabilities(model),
        max_output_tokens=_max_output_tokens(card),
        quantization=card.quantization,
    )


def _max_output_tokens(card: ModelCard) -> int:
    """Return the maximum number of tokens of an output; a prompt has at least one token."""
    longest = max(0, card.max_model_len - 1)
    return longest if card.max_output_tokens is None else min(longest, card.max_output_tokens)


def _capabilities(model: ServedModel) -> model_service_pb2.ModelCapabilities:
    spec, generates = model.backend.spec, model.chat is not None
    most_logprobs = spec.most_logprobs(int(LIMITS["ChatCompletionParams.top_logprobs"].maximum))
    has_logprobs = generates and "logprobs" not in spec.unsupported_fields
    modalities = [chat_pb2.MODALITY_TEXT]
    if spec.takes_images:
        modalities.append(chat_pb2.MODALITY_IMAGE)
    embeddings, classifier = model.embeddings, model.classifier
    return model_service_pb2.ModelCapabilities(
        unsupported_fields=sorted(spec.unsupported_fields),
        input_modalities=modalities,
        embeddings=embeddings is not None,
        tokenization=bool(model.backend.tokenizer or model.remote_tokenizer),
        structured_outputs=generates
        and "response_format.json_schema" not in spec.unsupported_fields,
        max_logprobs=most_logprobs if has_logprobs else None,
        is_batch_invariant=spec.is_batch_invariant,
        tasks=[_TASKS[task] for task in model.tasks],
        embedding_dimensions=None if embeddings is None else embeddings.num_dimensions,
        prompt_names=[] if embeddings is None else embeddings.prompt_names,
        labels=[] if classifier is None else classifier.labels,
        output_modalities=[chat_pb2.MODALITY_TEXT] if generates else [],
        tools=generates and "tools" not in spec.unsupported_fields,
        reasoning=spec.has_reasoning,
    )


_TASKS = {
    Task.GENERATE: model_service_pb2.MODEL_TASK_GENERATE,
    Task.EMBED: model_service_pb2.MODEL_TASK_EMBED,
    Task.CLASSIFY: model_service_pb2.MODEL_TASK_CLASSIFY,
    Task.SCORE: model_service_pb2.MODEL_TASK_SCORE,
}
