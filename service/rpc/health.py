"""The standard health service, whole: grpcio's own leaves `List` out."""

from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2

# Quoted: it is generic in its type stubs alone, and those of health do not know `List`.
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_messages: Any = health_pb2


class HealthServicer(health.aio.HealthServicer):
    """Health by name, and of all names that were set.

    https://github.com/grpc/proposal/blob/master/A90-health-list.md
    """

    def __init__(self) -> None:
        super().__init__()
        self._statuses: dict[str, int] = {}

    async def set(self, service: str, status: int) -> None:
        self._statuses[service] = status
        await super().set(service, status)

    async def List(self, request: Any, context: _Context) -> Any:  # noqa: ARG002, N802
        """`HealthListRequest` to `HealthListResponse`."""
        return _messages.HealthListResponse(
            statuses={
                name: health_pb2.HealthCheckResponse(status=status)
                for name, status in self._statuses.items()
            }
        )
