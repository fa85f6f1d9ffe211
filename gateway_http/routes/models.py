"""GET /v1/models and /v1/models/{model_id}."""

from starlette.requests import Request
from starlette.responses import Response

from gateway_http.caller import Caller
from gateway_http.clients import json_response
from gateway_http.convert import answers
from gateway_http.protocol.response import ModelList
from gateway_http.upstreams import CallOptions, Upstream

_TIMEOUT_S = 10


async def list_models(request: Request) -> Response:
    """Those that the caller may use."""
    upstream: Upstream = request.state.upstream
    models = await upstream.list_models(
        CallOptions(_TIMEOUT_S, request.state.exchange.call_metadata)
    )
    caller: Caller = request.state.caller
    usable = [model for model in models if caller.may_use(model.id, *model.aliases)]
    return json_response(ModelList(data=[answers.model(model) for model in usable]))


async def retrieve_model(request: Request) -> Response:
    """By id or alias. An id may contain slashes, as they are or as %2F."""
    upstream: Upstream = request.state.upstream
    caller: Caller = request.state.caller
    name = request.path_params["model_id"]
    caller.check_model(name)
    options = CallOptions(_TIMEOUT_S, request.state.exchange.call_metadata)
    model = await upstream.get_model(name, options)
    return json_response(answers.model(model))
