"""grpc.aio's types as the servicers and interceptors write them."""

from typing import Any, TypeAlias

import grpc

# Quoted: these are generic in their type stubs only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
