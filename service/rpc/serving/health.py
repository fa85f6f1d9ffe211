"""The standard health service, with `List`. Its watchers do not delay one another.

grpcio's own service has no `List`. When a status changes, it waits for the slowest watcher.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2

# The type is quoted, because it is generic only in its type stubs. The stubs of the health service
# have no `List`.
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_messages: Any = health_pb2

_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health.aio.HealthServicer):
    """Reports the health status of one name, or of all names that were set.

    https://github.com/grpc/proposal/blob/master/A90-health-list.md
    """

    def __init__(self) -> None:
        super().__init__()
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()  # set and replaced at each change

    async def set(self, service: str, status: int) -> None:
        await super().set(service, status)
        self._statuses[service] = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def Watch(  # type: ignore[override]  # noqa: N802  # grpcio's writes instead of yielding
        self,
        request: health_pb2.HealthCheckRequest,
        context: _Context,  # noqa: ARG002
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """Yield the status of a name, and each new one."""
        sent = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, _UNKNOWN)
            if status != sent:
                yield health_pb2.HealthCheckResponse(status=status)
                sent = status
            await changed.wait()

    async def List(self, request: Any, context: _Context) -> Any:  # noqa: ARG002, N802
        """Return a `HealthListResponse` with the status of every service."""
        return _messages.HealthListResponse(
            statuses={
                name: health_pb2.HealthCheckResponse(status=status)
                for name, status in self._statuses.items()
            }
        )
