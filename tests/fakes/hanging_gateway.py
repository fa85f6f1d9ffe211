"""The gateway with a probe that blocks the event loop; run it as a module."""

import time
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from gateway_http.__main__ import main
from gateway_http.endpoints import ENDPOINTS


async def healthz(_: Request) -> Response:
    time.sleep(3600)  # noqa: ASYNC251  # blocks the event loop on purpose
    return Response("ok")


if __name__ == "__main__":
    main([replace(each, handler=healthz) if each.name == "healthz" else each for each in ENDPOINTS])
