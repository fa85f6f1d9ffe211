"""The standard health service, whole, and such that no watcher holds up another.

grpcio's own leaves `List` out, and waits for the slowest watcher whenever a status changes.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2

# Quoted: it is generic in its type stubs alone, and those of health do not know `List`.
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_messages: Any = health_pb2

_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health.aio.HealthServicer):
    """Health by name, and of all names that were set.

    https://github.com/grpc/proposal/blob/master/A90-health-list.md
    """

    def __init__(self) -> None:
        super().__init__()
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()  # for the next change there is another one

    async def set(self, service: str, status: int) -> None:
        await super().set(service, status)
        self._statuses[service] = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def Watch(  # type: ignore[override]  # noqa: N802  # what it writes, this one yields
        self,
        request: health_pb2.HealthCheckRequest,
        context: _Context,  # noqa: ARG002
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """The status of a name, and what it changes to."""
        told = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, _UNKNOWN)
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
            await changed.wait()

    async def List(self, request: Any, context: _Context) -> Any:  # noqa: ARG002, N802
        """`HealthListRequest` to `HealthListResponse`."""
        return _messages.HealthListResponse(
            statuses={
                name: health_pb2.HealthCheckResponse(status=status)
                for name, status in self._statuses.items()
            }
        )
