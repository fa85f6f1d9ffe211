"""All endpoints of the HTTP API, as one table.

The application's routes, the open paths, the labels of metrics and the OpenAPI document are all
made from it. A new endpoint is a row here, and its handler in `routes`.
"""

from gateway_http.http.api_style import ANTHROPIC, RESPONSES
from gateway_http.http.endpoint import Endpoint, Handler
from gateway_http.protocol import (
    anthropic,
    classification,
    completion,
    decisions,
    embeddings,
    metadata,
    request,
    response,
    responses,
    responses_request,
    tokens,
)
from gateway_http.routes import (
    anthropic_messages,
    chat,
    completions,
    document,
    index,
    models,
    probes,
    stored_responses,
)
from gateway_http.routes import classification as classification_routes
from gateway_http.routes import decisions as decision_routes
from gateway_http.routes import embeddings as embedding_routes
from gateway_http.routes import responses as response_routes
from gateway_http.routes import tokens as token_routes

# Statuses of every endpoint. The head is invalid, too large or too slow, the host is not allowed,
# there are too many connections, or an unexpected error occurred.
_ANY = (400, 403, 408, 417, 431, 500, 503)
_WITH_KEY = (*_ANY, 401)
# Statuses of endpoints that use the store of responses.
_STORE = (*_WITH_KEY, 404, 429)
# Statuses of endpoints that call the service.
_CALL = (*_WITH_KEY, 429, 504)
# Statuses of endpoints with a body that names a model.
_BODY = (*_CALL, 404, 413, 415)

_READINESS = "Readiness probe: 200 if the service can be reached and is ready."
_READINESS_PATHS = ("readyz", "ready", "health", "ping", "health/ready")
_LIVENESS = "Liveness probe: 200 if the gateway runs."


def _probe(path: str, handler: Handler, summary: str) -> Endpoint:
    return Endpoint(
        name=path.replace("/", "_"),
        method="GET",
        path=f"/{path}",
        summary=summary,
        tag="Operate",
        handler=handler,
        admin_handler=handler,
        response="text/plain",
        errors=_ANY,
        is_probe=True,
        is_public=True,
    )


ENDPOINTS = (
    Endpoint(
        name="create_chat_completion",
        method="POST",
        path="/chat/completions",
        summary="Generate the next message of a conversation.",
        tag="Generate",
        handler=chat.create_chat_completion,
        response=response.ChatCompletion,
        body=request.ChatCompletionRequest,
        events=(response.ChatCompletionChunk,),
        errors=_BODY,
    ),
    Endpoint(
        name="create_completion",
        method="POST",
        path="/completions",
        summary="Continue prompts without a chat template, or score them.",
        tag="Generate",
        handler=completions.create_completion,
        response=completion.Completion,
        body=completion.CompletionRequest,
        events=(completion.Completion,),
        errors=_BODY,
    ),
    Endpoint(
        name="create_response",
        method="POST",
        path="/responses",
        summary="Generate a response, in the form of OpenAI's Responses API.",
        tag="Generate",
        handler=response_routes.create_response,
        response=responses.ResponseObject,
        body=responses_request.ResponsesRequest,
        events=responses.EVENTS,
        errors=_BODY,
        style=RESPONSES,
    ),
    Endpoint(
        name="count_input_tokens",
        method="POST",
        path="/responses/input_tokens",
        summary="Count the tokens of a response's input.",
        tag="Tokens",
        handler=response_routes.count_input_tokens,
        response=responses.InputTokenCount,
        body=responses_request.InputTokensRequest,
        errors=_BODY,
        style=RESPONSES,
    ),
    Endpoint(
        name="list_input_items",
        method="GET",
        path="/responses/{response_id}/input_items",
        summary="List the items that a stored response was generated from.",
        tag="Stored responses",
        handler=stored_responses.list_input_items,
        response=responses.ItemPage,
        errors=_STORE,
    ),
    Endpoint(
        name="retrieve_response",
        method="GET",
        path="/responses/{response_id}",
        summary="Return a stored response.",
        tag="Stored responses",
        handler=stored_responses.retrieve_response,
        response=responses.ResponseObject,
        errors=_STORE,
    ),
    Endpoint(
        name="delete_response",
        method="DELETE",
        path="/responses/{response_id}",
        summary="Delete a stored response.",
        tag="Stored responses",
        handler=stored_responses.delete_response,
        response=responses.DeletedResponse,
        errors=_STORE,
    ),
    Endpoint(
        name="create_message",
        method="POST",
        path="/messages",
        summary="Generate the next message of a conversation, in Anthropic's form.",
        tag="Generate",
        handler=anthropic_messages.create_message,
        response=anthropic.AssistantMessage,
        body=anthropic.MessagesRequest,
        events=anthropic.EVENTS,
        errors=_BODY,
        style=ANTHROPIC,
    ),
    Endpoint(
        name="count_message_tokens",
        method="POST",
        path="/messages/count_tokens",
        summary="Count the tokens of a conversation, in Anthropic's form.",
        tag="Tokens",
        handler=anthropic_messages.count_tokens,
        response=anthropic.TokenCount,
        body=anthropic.CountTokensRequest,
        errors=_BODY,
        style=ANTHROPIC,
    ),
    Endpoint(
        name="create_embeddings",
        method="POST",
        path="/embeddings",
        summary="Compute the embeddings of texts or of token ids.",
        tag="Generate",
        handler=embedding_routes.create_embeddings,
        response=embeddings.Embeddings,
        body=embeddings.EmbeddingsRequest,
        errors=_BODY,
    ),
    *(
        Endpoint(
            name=name,
            method="POST",
            path=path,
            summary="Rank documents for a query.",
            tag="Generate",
            handler=classification_routes.rerank,
            response=classification.Reranking,
            body=classification.RerankRequest,
            errors=_BODY,
        )
        for name, path in (("rerank", "/rerank"), ("rerank_v2", "/v2/rerank"))
    ),
    Endpoint(
        name="score",
        method="POST",
        path="/score",
        summary="Score pairs of texts.",
        tag="Generate",
        handler=classification_routes.score,
        response=classification.Scores,
        body=classification.ScoreRequest,
        errors=_BODY,
    ),
    Endpoint(
        name="classify",
        method="POST",
        path="/classify",
        summary="Classify texts or token ids.",
        tag="Generate",
        handler=classification_routes.classify,
        response=classification.Classifications,
        body=classification.ClassifyRequest,
        errors=_BODY,
    ),
    Endpoint(
        name="create_decision",
        method="POST",
        path="/decisions",
        summary="Answer typed questions about an input by probabilities.",
        tag="Generate",
        handler=decision_routes.create_decision,
        response=decisions.Decision,
        body=decisions.DecisionRequest,
        errors=_BODY,
    ),
    Endpoint(
        name="list_models",
        method="GET",
        path="/models",
        summary="List the models that the caller may use.",
        tag="Models",
        handler=models.list_models,
        response=response.ModelList,
        errors=_CALL,
    ),
    Endpoint(
        name="retrieve_model",
        method="GET",
        path="/models/{model_id}",
        summary="Return a model by its id or alias, with slashes plain or as %2F.",
        tag="Models",
        handler=models.retrieve_model,
        response=response.Model,
        errors=(*_CALL, 404),
    ),
    Endpoint(
        name="metadata",
        method="GET",
        path="/metadata",
        summary="Return the version of the gateway and its models, in NVIDIA NIM's form.",
        tag="Models",
        handler=models.metadata,
        response=metadata.DeploymentMetadata,
        errors=_CALL,
    ),
    Endpoint(
        name="tokenize",
        method="POST",
        path="/tokenize",
        summary="Turn a text, or a conversation through the chat template, into token ids.",
        tag="Tokens",
        handler=token_routes.tokenize,
        response=tokens.TokenizeResponse,
        body=tokens.TokenizeRequest,
        errors=_BODY,
    ),
    Endpoint(
        name="detokenize",
        method="POST",
        path="/detokenize",
        summary="Turn token ids into text.",
        tag="Tokens",
        handler=token_routes.detokenize,
        response=tokens.DetokenizeResponse,
        body=tokens.DetokenizeRequest,
        errors=_BODY,
    ),
    *(_probe(path, probes.readyz, _READINESS) for path in _READINESS_PATHS),
    *(_probe(path, probes.healthz, _LIVENESS) for path in ("healthz", "live", "health/live")),
    Endpoint(
        name="metrics",
        method="GET",
        path="/metrics",
        summary="Metrics for Prometheus. With an admin port they are served only there. With keys, "
        "they need a key that may use all models.",
        tag="Operate",
        handler=probes.metrics_for_operators,
        admin_handler=probes.metrics,
        response="text/plain",
        errors=(*_WITH_KEY, 404),
        is_probe=True,
    ),
    Endpoint(
        name="index",
        method="GET",
        path="/",
        summary="Describe this server, as JSON or as a page. It needs no key.",
        tag="Operate",
        handler=index.index,
        response="application/json",
        errors=_ANY,
        is_public=True,
    ),
    Endpoint(
        name="version",
        method="GET",
        path="/version",
        summary="Return the version of the gateway.",
        tag="Operate",
        handler=probes.version,
        response=response.Version,
        errors=_WITH_KEY,
    ),
    Endpoint(
        name="openapi",
        method="GET",
        path="/openapi.json",
        summary="Return this document.",
        tag="Operate",
        handler=document.openapi,
        response="application/json",
        errors=_WITH_KEY,
    ),
    Endpoint(
        name="docs",
        method="GET",
        path="/docs",
        summary="Return this document as a page.",
        tag="Operate",
        handler=document.docs,
        response="text/html",
        errors=_WITH_KEY,
    ),
)
