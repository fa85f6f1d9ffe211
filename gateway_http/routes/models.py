"""GET /v1/models, /v1/models/{model_id} and /v1/metadata."""

import asyncio
import time

import grpc
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from chatrpc.v1 import model_service_pb2
from gateway_http.convert import models as convert
from gateway_http.http.request_io import json_response
from gateway_http.protocol import response as openai
from gateway_http.protocol.error import ApiError
from gateway_http.protocol.metadata import DeployedModel, DeploymentMetadata
from gateway_http.routes.probes import VERSION
from gateway_http.routes.request_state import (
    call_metadata_of,
    caller_of,
    context_of,
    router_of,
)
from gateway_http.upstream.client import CallOptions
from gateway_http.upstream.registry import Entry, HostedModel, WholeService
from gateway_http.upstream.router import Route
from gateway_http.upstream.rpcs import GET_MODEL

_TIMEOUT_S = 5.0  # the timeout of all calls together
_MAX_CALLS = 32  # maximum number of concurrent calls

_UNKNOWN_OWNER = "unknown"
_OWN_OWNER = "chatrpc"
_REJECTIONS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
# Statuses by which a service reports that the caller may not use the model, or that it has none.
_DEFINITE = (*_REJECTIONS, grpc.StatusCode.NOT_FOUND)


async def list_models(request: Request) -> Response:
    """Return the models that the caller may use, as their services describe them.

    A registered model whose service cannot be reached is listed without details.
    """
    return json_response(openai.ModelList(data=await _usable_models(request)))


async def metadata(request: Request) -> Response:
    """Return the version of the gateway and the models that the caller may use, in NIM's form."""
    models = await _usable_models(request)
    infos = [DeployedModel(model.id, model.root or model.id) for model in models]
    return json_response(DeploymentMetadata(VERSION, infos))


async def _usable_models(request: Request) -> list[openai.Model]:
    """Return the models that the caller may use.

    Raises:
        AioRpcError: All services reject the caller, or a service whose models are not registered
            fails.
    """
    router, caller = router_of(request), caller_of(request)
    limit, end_s = asyncio.Semaphore(_MAX_CALLS), time.monotonic() + _TIMEOUT_S
    listing = [
        _models_of(entry, request, limit, end_s)
        for entry in router.entries
        if isinstance(entry, WholeService) or caller.may_use(*entry.names)
    ]
    models: list[openai.Model] = []
    rejections = []
    for listed in await asyncio.gather(*listing, return_exceptions=True):
        if isinstance(listed, list):
            models.extend(listed)
        elif isinstance(listed, grpc.aio.AioRpcError) and listed.code() in _REJECTIONS:
            rejections.append(listed)
        elif not isinstance(listed, ApiError):  # an ApiError means that the service lacks the model
            raise listed
    if rejections and not models:
        raise rejections[0]
    return models


async def retrieve_model(request: Request) -> Response:
    """Return a model by its id or alias, which may contain slashes."""
    router, name = router_of(request), request.path_params["model_id"]
    context_of(request).record.model = name
    caller_of(request).check_model(name, *router.names(name))
    with router.route(name) as route:
        return json_response(await _model(route, request, _TIMEOUT_S))


async def _models_of(
    entry: Entry, request: Request, limit: asyncio.Semaphore, end_s: float
) -> list[openai.Model]:
    """Return the models of an entry that the caller may use.

    Args:
        entry: The entry of the routing table.
        request: The request.
        limit: Limits the number of concurrent calls.
        end_s: The deadline, a time of `time.monotonic()`.
    """
    async with limit:
        with router_of(request).route_to(entry) as route:
            timeout_s = max(0.0, end_s - time.monotonic())
            if not isinstance(entry, WholeService):
                return [await _model(route, request, timeout_s)]
            models = await route.list_models(call_metadata_of(request), timeout_s)
            may_use = caller_of(request).may_use
            return [
                convert.model(model, model.id, model.aliases)
                for model in models
                if may_use(model.id, *model.aliases)
            ]


async def _model(route: Route, request: Request, timeout_s: float) -> openai.Model:
    """Return the service's description of a model, under its name for clients.

    If the service of a registered model cannot be reached or fails, the description has no details:
    clients keep such lists for long, and the model should stay in them.

    A hosted model is not loaded for this. If it is not loaded, its description is the last known
    one.

    Raises:
        AioRpcError: The service rejects the caller or lacks the model, or any error of a service
            whose models are not registered.
    """
    if isinstance(route.entry, HostedModel):
        return await _hosted_model(route.entry, request, timeout_s)
    message = model_service_pb2.GetModelRequest(id=route.model)
    try:
        response = await route.call(GET_MODEL, message, call_metadata_of(request), timeout_s)
        model = response.model
    except grpc.aio.AioRpcError as error:
        if isinstance(route.entry, WholeService) or error.code() in _DEFINITE:
            raise
        model = model_service_pb2.Model(owned_by=_UNKNOWN_OWNER)
    entry = route.entry
    if isinstance(entry, WholeService):
        return convert.model(model, model.id, model.aliases)
    return convert.model(model, entry.name, entry.aliases, entry.shutdown_date)


async def _hosted_model(entry: HostedModel, request: Request, timeout_s: float) -> openai.Model:
    """Return the description of a hosted model, and its state.

    Raises:
        AioRpcError: The service rejects the caller.
    """
    hosted = router_of(request).hosted
    upstream = hosted.loaded(entry)
    if upstream is not None:
        options = CallOptions(timeout_s, call_metadata_of(request).with_key(None))
        message = model_service_pb2.GetModelRequest(id=entry.name)
        try:
            response = await upstream.call(GET_MODEL, message, options)
            hosted.note_description(entry, response.model)
        except grpc.aio.AioRpcError as error:
            if error.code() in _REJECTIONS:
                raise
    description = hosted.description(entry)
    status = hosted.status(entry)
    model = convert.model(
        description or model_service_pb2.Model(owned_by=_OWN_OWNER),
        entry.name,
        entry.aliases,
        entry.shutdown_date,
    )
    model.status = openai.ModelStatus(status.state.value, status.failure or UNSET)
    return model
