"""The status and the details of a failed call."""

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status


@dataclass
class RpcError:
    """The parts of a failed call that a client reads."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    fields: list[str] = field(default_factory=list)
    retry_after_s: float | None = None
    trailing: dict[str, Any] = field(default_factory=dict)


async def rpc_error(call: Any, seen: list[Any] | None = None) -> RpcError:
    """Return the error of a call that fails. `seen` gets the messages of a stream before it."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if isinstance(call, Awaitable):
            await call
        else:
            async for response in call:
                if seen is not None:
                    seen.append(response)
    error = caught.value
    failed = RpcError(error.code(), error.details() or "")
    failed.trailing = dict(error.trailing_metadata() or ())
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has the methods of a call that are used
    assert status is not None
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            assert info.domain == "chatrpc"
            failed.reason, failed.metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            failed.fields = [violation.field for violation in bad.field_violations]
        elif detail.Unpack(retry):
            failed.retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    return failed
