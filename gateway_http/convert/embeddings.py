"""Converts embeddings between OpenAI's JSON and the proto."""

import base64
import struct

from chatrpc.v1 import embedding_service_pb2
from gateway_http.convert.aliases import first_given
from gateway_http.convert.inputs import is_single
from gateway_http.convert.pooling import pooled_inputs, truncation
from gateway_http.convert.unsupported import reject_given
from gateway_http.protocol import embeddings as openai


def embeddings_request(
    request: openai.EmbeddingsRequest,
) -> embedding_service_pb2.CreateEmbeddingsRequest:
    """Convert a body. The result has no model: the service may have another name for it.

    Raises:
        InvalidRequest: The proto has no equivalent of a field.
    """
    reject_given(request, openai.UNSUPPORTED)
    text_inputs, token_inputs = pooled_inputs(request.input)
    return embedding_service_pb2.CreateEmbeddingsRequest(
        text_inputs=text_inputs,
        token_inputs=token_inputs,
        dimensions=request.dimensions,
        user=request.user,
        prompt_name=first_given(request.prompt_name, request.input_type),
        truncation=truncation(request),
        normalize=request.normalize,
        add_special_tokens=request.add_special_tokens,
        priority=request.priority,
    )


def sent_names(request: openai.EmbeddingsRequest) -> dict[str, str]:
    """Return the names under which a client sent parameters; see `param_of`.

    A single input is named `input`, without an index.
    """
    names = {"input[0]": "input"} if is_single(request.input) else {}
    if request.prompt_name is None:
        names["prompt_name"] = "input_type"
    return names


def embeddings_response(
    response: embedding_service_pb2.CreateEmbeddingsResponse,
    model: str,
    request: openai.EmbeddingsRequest,
) -> openai.Embeddings:
    """Convert a response.

    Args:
        response: The response.
        model: The name of its model for clients.
        request: The body of its request.
    """
    is_base64 = request.encoding_format == "base64"
    num_tokens = response.usage.prompt_tokens
    return openai.Embeddings(
        data=[
            openai.Embedding(
                index=each.index,
                embedding=_as_base64(each) if is_base64 else list(each.values),
            )
            for each in response.embeddings
        ],
        model=model,
        usage=openai.EmbeddingsUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )


def _as_base64(embedding: embedding_service_pb2.Embedding) -> str:
    packed = struct.pack(f"<{len(embedding.values)}f", *embedding.values)
    return base64.b64encode(packed).decode()
