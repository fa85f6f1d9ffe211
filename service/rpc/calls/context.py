"""Types of grpc.aio for the annotations of servicers and interceptors."""

from typing import Any, TypeAlias

import grpc

# The types are quoted, because they are generic only in their type stubs.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
