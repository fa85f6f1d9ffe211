"""What machines ask: is it alive, is it ready, what has it counted."""

from importlib.metadata import version as version_of

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from gateway_http.auth.caller import Caller
from gateway_http.http.request_io import json_response
from gateway_http.metrics import Metrics
from gateway_http.protocol.error import ApiError
from gateway_http.protocol.response import Version
from gateway_http.upstream.router import Router

# Less than the period of a probe; a service that takes longer to say so is not ready.
_READY_TIMEOUT_S = 2

VERSION = version_of("chatrpc")


async def healthz(_: Request) -> Response:
    """The event loop turns."""
    return Response("ok\n", media_type="text/plain")


async def readyz(request: Request) -> Response:
    """The gateway stays, and the service behind it takes requests; of several, one does."""
    if request.app.state.draining.is_set():
        raise _unready("The gateway is shutting down.")
    router: Router = request.state.router
    if await router.is_ready(_READY_TIMEOUT_S):
        return Response("ok\n", media_type="text/plain")
    raise _unready("The model service is not ready.")


async def metrics(request: Request) -> Response:
    counted: Metrics = request.app.state.metrics
    return Response(counted.render(), media_type=CONTENT_TYPE_LATEST)


async def metrics_for_operators(request: Request) -> Response:
    """On the port of the API. The page names all models, and so needs a key that permits them."""
    caller: Caller = request.state.caller
    if not caller.may_use_all_models:
        raise ApiError(
            403, "Metrics need an API key that may use all models.", code="permission_denied"
        )
    return await metrics(request)


async def metrics_elsewhere(_: Request) -> Response:
    """On the port of the API, if there is an admin port."""
    raise ApiError(404, "Metrics are served on the admin port.")


async def version(_: Request) -> Response:
    return json_response(Version(VERSION))


def _unready(message: str) -> ApiError:
    return ApiError(
        503,
        message,
        kind="service_unavailable_error",
        code="service_unavailable",
        headers={"retry-after": "1"},
    )
