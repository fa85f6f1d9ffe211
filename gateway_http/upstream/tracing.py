"""The spans of calls to services."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import grpc

from chatrpc_process.tracing.api import Kind, Value, current


@contextmanager
def called(request: Any) -> Iterator[Sequence[tuple[str, str]]]:
    """A call with `request`, from its begin to its end; yields the metadata that goes with it."""
    kind: Any = type(request)
    name = _method(kind)
    span = current().child(name, Kind.CLIENT, {"rpc.system.name": "grpc", "rpc.method": name})
    code = "CANCELLED"  # unless it ends by itself: then its caller has left, which is no error
    try:
        if span.is_recording:
            span.set_attributes(_generation(request))
        yield () if span.context is None else span.context.fields
        code = "OK"
    except grpc.aio.AioRpcError as error:
        code = error.code().name
        span.fail(code)
        raise
    finally:
        span.set_attributes({"rpc.response.status_code": code})
        span.end()


@cache
def _method(request: Any) -> str:
    """`package.Service/Method`. A proto file of ours has one service, and a request its name."""
    descriptor = request.DESCRIPTOR
    [service] = descriptor.file.services_by_name.values()
    return f"{service.full_name}/{descriptor.name.removesuffix('Request')}"


_OPERATIONS = {"ChatCompletionParams": "chat", "CompletionParams": "text_completion"}


def _generation(request: Any) -> dict[str, Value]:
    """What is asked of which model. The service tells the rest: told twice, sums would be wrong."""
    if "params" not in request.DESCRIPTOR.fields_by_name:
        return {}
    params = request.params
    return {
        "gen_ai.operation.name": _OPERATIONS[params.DESCRIPTOR.name],
        "gen_ai.provider.name": "chatrpc",
        "gen_ai.request.model": params.model,
    }
