"""The request and the response bodies of POST /v1/embeddings."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from gateway_http.protocol.field_notes import Rejected, http_only, proto_field
from gateway_http.protocol.numbers import UInt32
from gateway_http.protocol.pooling import PoolingRequest
from gateway_http.protocol.struct_fields import own_fields

# All elements have one of the three types. The type cannot express that.
Inputs = Annotated[list[str | UInt32 | list[UInt32]], Meta(min_length=1)]


class UnsupportedEmbeddingParameters(PoolingRequest, kw_only=True):
    """Parameters of other servers that are rejected unless they are null."""

    # vLLM's.
    messages: Rejected = None
    chat_template: Rejected = None
    embed_dtype: Rejected = None
    endianness: Rejected = None
    # NIM's.
    embedding_type: Rejected = None
    modality: Rejected = None


UNSUPPORTED = own_fields(UnsupportedEmbeddingParameters, PoolingRequest)


class EmbeddingsRequest(UnsupportedEmbeddingParameters, forbid_unknown_fields=True, kw_only=True):
    """The inputs of embeddings, and their form."""

    model: Annotated[str, proto_field("CreateEmbeddingsRequest.model")]
    input: Annotated[
        str | Inputs,
        proto_field(
            "CreateEmbeddingsRequest.text_inputs",
            "TextInputs.texts",
            "CreateEmbeddingsRequest.token_inputs",
            "TokenInputs.token_ids",
            description="One text, several texts, the token ids of one input or those of several: "
            "at most 2048 inputs, none of them empty.",
        ),
    ]
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        http_only(
            "The form of the embeddings: a list of numbers, or the numbers as floats of 32 bits, "
            "little-endian, in base64. Absent: float."
        ),
    ] = None
    dimensions: Annotated[UInt32 | None, proto_field("CreateEmbeddingsRequest.dimensions")] = None
    add_special_tokens: Annotated[
        bool | None, proto_field("CreateEmbeddingsRequest.add_special_tokens")
    ] = None
    normalize: Annotated[bool | None, proto_field("CreateEmbeddingsRequest.normalize")] = None
    prompt_name: Annotated[str | None, proto_field("CreateEmbeddingsRequest.prompt_name")] = None
    input_type: Annotated[
        str | None,
        proto_field("CreateEmbeddingsRequest.prompt_name", note="NIM's name of `prompt_name`."),
    ] = None

    def drop_input(self) -> None:
        """Free the input after it has been converted."""
        self.input = ""


class Embedding(Struct, kw_only=True):
    """The embedding of an input."""

    object: Annotated[Literal["embedding"], http_only("A constant.")] = "embedding"
    index: int
    embedding: Annotated[
        list[float] | str,
        proto_field("Embedding.values", note="With the encoding format base64: a string."),
    ]


class EmbeddingsUsage(Struct):
    """Counts of tokens."""

    prompt_tokens: Annotated[int, proto_field("EmbeddingUsage.prompt_tokens")]
    total_tokens: Annotated[int, http_only("Equal to `prompt_tokens`.")]


class Embeddings(Struct, kw_only=True):
    """The embeddings of all inputs."""

    object: Annotated[Literal["list"], http_only("A constant.")] = "list"
    data: Annotated[list[Embedding], proto_field("CreateEmbeddingsResponse.embeddings")]
    model: Annotated[str, proto_field("CreateEmbeddingsResponse.model")]
    usage: Annotated[EmbeddingsUsage, proto_field("CreateEmbeddingsResponse.usage")]
