"""The spans of calls to services."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import grpc

from chatrpc_process.tracing.api import Kind, Value, current
from gateway_http.upstream.rpcs import Request, Response, Rpc


@contextmanager
def call_span(rpc: Rpc[Request, Response], request: Request) -> Iterator[Sequence[tuple[str, str]]]:
    """Record a span of a call while in the context; yield the metadata that continues the trace."""
    attributes: dict[str, Value] = {"rpc.system.name": "grpc", "rpc.method": rpc.full_name}
    span = current().child(rpc.full_name, Kind.CLIENT, attributes)
    code = "CANCELLED"  # used if the client leaves before the call ends, which is no error
    try:
        if span.is_recording:
            span.set_attributes(_operation_attributes(rpc, request))
        yield () if span.context is None else span.context.fields
        code = "OK"
    except grpc.aio.AioRpcError as error:
        code = error.code().name
        span.fail(code)
        raise
    finally:
        span.set_attributes({"rpc.response.status_code": code})
        span.end()


def _operation_attributes(rpc: Rpc[Request, Response], request: Request) -> Mapping[str, Value]:
    """Return the operation and the model. Only the service's own span has numbers of tokens: if
    both had them, sums over spans would be wrong.
    """
    if not rpc.operation:
        return {}
    return {
        "gen_ai.operation.name": rpc.operation,
        "gen_ai.provider.name": "chatrpc",
        "gen_ai.request.model": rpc.model_of(request),
    }
