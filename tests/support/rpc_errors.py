"""A refused call's status and details, unpacked."""

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status


@dataclass
class RpcError:
    """What a client reads of a failed call."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    fields: list[str] = field(default_factory=list)
    retry_after_s: float | None = None
    trailing: dict[str, Any] = field(default_factory=dict)


async def rpc_error(call: Any, seen: list[Any] | None = None) -> RpcError:
    """Await a call that fails, or read a stream to its failure; `seen` gets what came before."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if isinstance(call, Awaitable):
            await call
        else:
            async for response in call:
                if seen is not None:
                    seen.append(response)
    error = caught.value
    refused = RpcError(error.code(), error.details() or "")
    refused.trailing = dict(error.trailing_metadata() or ())
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # has what a call has
    assert status is not None
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            assert info.domain == "chatrpc"
            refused.reason, refused.metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            refused.fields = [violation.field for violation in bad.field_violations]
        elif detail.Unpack(retry):
            refused.retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    return refused
