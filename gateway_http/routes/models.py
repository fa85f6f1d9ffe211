"""GET /v1/models and /v1/models/{model_id}."""

import asyncio
import time

import grpc
from starlette.requests import Request
from starlette.responses import Response

from chatrpc.v1 import model_service_pb2
from gateway_http.auth.caller import Caller
from gateway_http.convert import chat_completions
from gateway_http.http.request_io import json_response
from gateway_http.protocol.error import ApiError
from gateway_http.protocol.response import ModelList
from gateway_http.upstream.client import CallOptions
from gateway_http.upstream.registry import Entry
from gateway_http.upstream.router import Route, Router

_TIMEOUT_S = 5.0  # for all of it
_MAX_CALLS = 32  # at once

_UNKNOWN_OWNER = "unknown"
_REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
# That it is not for this caller, or not there; by any other the service says nothing of it.
_ANSWERS = (*_REFUSALS, grpc.StatusCode.NOT_FOUND)


async def list_models(request: Request) -> Response:
    """What the services behind all names say of themselves; see `_card` for those that do not.

    Of those alone that the caller may use.
    """
    router: Router = request.state.router
    caller: Caller = request.state.caller
    limit, end_s = asyncio.Semaphore(_MAX_CALLS), time.monotonic() + _TIMEOUT_S
    usable = [
        entry
        for entry in router.entries
        if entry.name is None or caller.may_use(entry.name, *entry.aliases)
    ]
    listing = [_models_of(entry, request, limit, end_s) for entry in usable]
    listed = await asyncio.gather(*listing, return_exceptions=True)
    models, refusals = [], []
    for found in listed:
        if isinstance(found, list):
            models.extend(found)
        elif isinstance(found, grpc.aio.AioRpcError) and found.code() in _REFUSALS:
            refusals.append(found)
        elif not isinstance(found, ApiError):  # which says that the service lacks the model
            raise found
    if refusals and not models:
        raise refusals[0]
    return json_response(ModelList(data=[chat_completions.model(model) for model in models]))


async def retrieve_model(request: Request) -> Response:
    """By id or alias. An id may contain slashes, as they are or as %2F."""
    router: Router = request.state.router
    caller: Caller = request.state.caller
    name = request.path_params["model_id"]
    request.state.exchange.record.model = name
    caller.check_model(name, *router.names(name))
    with router.route(name) as route:
        model = await _card(route, _options(request, route, _TIMEOUT_S))
    return json_response(chat_completions.model(model))


async def _models_of(
    entry: Entry, request: Request, limit: asyncio.Semaphore, end_s: float
) -> list[model_service_pb2.Model]:
    router: Router = request.state.router
    async with limit:
        with router.route_to(entry) as route:
            options = _options(request, route, max(0.0, end_s - time.monotonic()))
            if entry.name is None:
                models = await route.upstream.list_models(options)
                caller: Caller = request.state.caller
                return [model for model in models if caller.may_use(model.id, *model.aliases)]
            return [await _card(route, options)]


async def _card(route: Route, options: CallOptions) -> model_service_pb2.Model:
    """What the service says of the model, under the name that it has here.

    A service that cannot be reached, or fails, does not make the model go away: clients keep such
    lists for long. Then the registry alone speaks. One that refuses the caller, or lacks the model,
    raises.
    """
    try:
        model = await route.upstream.get_model(route.model, options)
    except grpc.aio.AioRpcError as error:
        if route.entry.name is None or error.code() in _ANSWERS:
            raise
        model = model_service_pb2.Model(owned_by=_UNKNOWN_OWNER)
    model.id = route.told(model.id)
    return model


def _options(request: Request, route: Route, timeout_s: float) -> CallOptions:
    return route.options(timeout_s, request.state.exchange.call_metadata, request.headers)
