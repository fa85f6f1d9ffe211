"""The request and the response bodies of POST /v1/rerank, /v1/score and /v1/classify.

Rerank has the form of Cohere's and Jina's APIs, score and classify that of vLLM's.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from gateway_http.protocol.embeddings import Inputs
from gateway_http.protocol.field_notes import Rejected, http_only, proto_field
from gateway_http.protocol.numbers import UInt32
from gateway_http.protocol.pooling import PoolingRequest, PoolingUsage
from gateway_http.protocol.struct_fields import own_fields

_ACTIVATION = "If it is false, the scores are the numbers of the model's head (logits)."


class TextDocument(Struct):
    """A document as an object. Its other fields are not read."""

    text: Annotated[str, proto_field("RerankRequest.documents", description="The text.")]


Documents = Annotated[list[str | TextDocument], Meta(min_length=1)]


class UnsupportedRerankParameters(PoolingRequest, kw_only=True):
    """Parameters of other servers that are rejected unless they are null."""

    max_chunks_per_doc: Rejected = None
    rank_fields: Rejected = None
    return_embeddings: Rejected = None


class RerankRequest(UnsupportedRerankParameters, forbid_unknown_fields=True, kw_only=True):
    """A query, and documents to rank for it."""

    model: Annotated[str, proto_field("RerankRequest.model")]
    use_activation: Annotated[
        bool | None, proto_field("RerankRequest.activation", description=_ACTIVATION)
    ] = None
    query: Annotated[str | TextDocument, proto_field("RerankRequest.query")]
    documents: Annotated[
        Documents,
        proto_field("RerankRequest.documents", note="A document is a text or an object with it."),
    ]
    top_n: Annotated[UInt32 | None, proto_field("RerankRequest.top_n")] = None
    return_documents: Annotated[
        bool | None, http_only("Return the documents' texts with the results. Absent: true.")
    ] = None
    max_tokens_per_doc: Annotated[
        UInt32 | None, proto_field("RerankRequest.max_tokens_per_document")
    ] = None
    truncation: Annotated[
        bool | None, http_only("Jina's option: truncate long inputs to the model's maximum.")
    ] = None

    def drop_input(self) -> None:
        """Free the input after it has been converted, except what the response returns."""
        self.query = ""
        if self.return_documents is False:
            self.documents = []


class RankedDocument(Struct):
    """A document of the request."""

    text: Annotated[str, http_only("The text of the document.")]


class RerankResult(Struct, omit_defaults=True):
    """A document's place in the ranking."""

    index: Annotated[int, proto_field("RerankResult.index")]
    relevance_score: Annotated[float, proto_field("RerankResult.relevance_score")]
    document: Annotated[
        RankedDocument | None, http_only("The document, unless `return_documents` is false.")
    ] = None


class Reranking(Struct, kw_only=True):
    """The documents with the highest scores."""

    id: Annotated[str, http_only("An id of the response.")]
    model: Annotated[str, proto_field("RerankResponse.model")]
    results: Annotated[list[RerankResult], proto_field("RerankResponse.results")]
    usage: Annotated[PoolingUsage, proto_field("RerankResponse.usage")]


class UnsupportedScoreParameters(PoolingRequest, kw_only=True):
    """Parameters of other servers that are rejected unless they are null."""

    # SGLang's: scores of next tokens.
    label_token_ids: Rejected = None
    apply_softmax: Rejected = None
    item_first: Rejected = None
    # vLLM's.
    chat_template: Rejected = None
    mm_processor_kwargs: Rejected = None


_Texts = str | Annotated[list[str], Meta(min_length=1)]
_First = Annotated[
    _Texts | None,
    proto_field(
        "TextPair.query",
        "ScoreRequest.pairs",
        description="One text, which is paired with each of the others, or as many as those.",
    ),
]
_Second = Annotated[
    _Texts | None,
    proto_field("TextPair.document", "ScoreRequest.pairs", description="One text or several."),
]


class ScoreRequest(UnsupportedScoreParameters, forbid_unknown_fields=True, kw_only=True):
    """Pairs of texts to score. The first texts have one of three names, and the others too."""

    model: Annotated[str, proto_field("ScoreRequest.model")]
    use_activation: Annotated[
        bool | None, proto_field("ScoreRequest.activation", description=_ACTIVATION)
    ] = None
    text_1: _First = None
    queries: _First = None
    data_1: _First = None
    text_2: _Second = None
    documents: _Second = None
    items: _Second = None
    data_2: _Second = None

    def drop_input(self) -> None:
        """Free the input after it has been converted."""
        for name in (*FIRST_TEXTS, *SECOND_TEXTS):
            setattr(self, name, None)


FIRST_TEXTS = ("text_1", "queries", "data_1")
SECOND_TEXTS = ("text_2", "documents", "items", "data_2")


class Score(Struct, kw_only=True):
    """The score of a pair."""

    object: Annotated[Literal["score"], http_only("A constant.")] = "score"
    index: Annotated[int, http_only("The index of the pair.")]
    score: Annotated[float, proto_field("ScoreResponse.scores")]


class Scores(Struct, kw_only=True):
    """The scores of all pairs."""

    id: Annotated[str, http_only("An id of the response.")]
    object: Annotated[Literal["list"], http_only("A constant.")] = "list"
    created: Annotated[int, http_only("The time of the response, in Unix seconds.")]
    model: Annotated[str, proto_field("ScoreResponse.model")]
    data: Annotated[list[Score], proto_field("ScoreResponse.scores")]
    usage: Annotated[PoolingUsage, proto_field("ScoreResponse.usage")]


class UnsupportedClassifyParameters(PoolingRequest, kw_only=True):
    """Parameters of other servers that are rejected unless they are null."""

    messages: Rejected = None
    chat_template: Rejected = None


class ClassifyRequest(UnsupportedClassifyParameters, forbid_unknown_fields=True, kw_only=True):
    """The inputs to classify."""

    model: Annotated[str, proto_field("ClassifyRequest.model")]
    use_activation: Annotated[
        bool | None, proto_field("ClassifyRequest.activation", description=_ACTIVATION)
    ] = None
    input: Annotated[
        str | Inputs,
        proto_field(
            "ClassifyRequest.text_inputs",
            "ClassifyRequest.token_inputs",
            description="One text, several texts, the token ids of one input or those of several: "
            "at most 2048 inputs, none of them empty.",
        ),
    ]
    add_special_tokens: Annotated[
        bool | None, proto_field("ClassifyRequest.add_special_tokens")
    ] = None

    def drop_input(self) -> None:
        """Free the input after it has been converted."""
        self.input = ""


class Classification(Struct, kw_only=True):
    """The classification of an input."""

    index: Annotated[int, proto_field("Classification.index")]
    label: Annotated[str, proto_field("Classification.label")]
    probs: Annotated[list[float], proto_field("Classification.scores")]
    num_classes: Annotated[int, http_only("The number of labels.")]


class Classifications(Struct, kw_only=True):
    """The classifications of all inputs."""

    id: Annotated[str, http_only("An id of the response.")]
    object: Annotated[Literal["list"], http_only("A constant.")] = "list"
    created: Annotated[int, http_only("The time of the response, in Unix seconds.")]
    model: Annotated[str, proto_field("ClassifyResponse.model")]
    labels: Annotated[list[str], proto_field("ClassifyResponse.labels")]
    data: Annotated[list[Classification], proto_field("ClassifyResponse.classifications")]
    usage: Annotated[PoolingUsage, proto_field("ClassifyResponse.usage")]


UNSUPPORTED = {
    kind: own_fields(kind, PoolingRequest)
    for kind in (
        UnsupportedRerankParameters,
        UnsupportedScoreParameters,
        UnsupportedClassifyParameters,
    )
}
