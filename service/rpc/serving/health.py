"""The standard health service, with `List`, and without watchers that delay one another.

grpcio's own has no `List`, and waits for the slowest watcher whenever a status changes.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2

# Quoted: it is generic only in its type stubs. Those of health have no `List`.
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
        self._changed = asyncio.Event()  # replaced at each change

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
