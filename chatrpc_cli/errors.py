"""Reports of failed calls in the terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import grpc
import typer
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status


@contextmanager
def reporting(target: str) -> Iterator[None]:
    """Report a failed call to `target` in the block, and end the command with exit code 1."""
    try:
        yield
    except grpc.RpcError as error:
        report(error, target)
        raise typer.Exit(1) from None


def report(error: grpc.RpcError, target: str) -> None:
    """Write the error to stderr, as `error: <message> [CODE/REASON]`."""
    call = cast("grpc.Call", error)  # every RpcError that grpcio raises has its methods
    code, reason = call.code(), _reason(call)
    message = " ".join((call.details() or "").split())
    if code is grpc.StatusCode.UNAVAILABLE and not reason:  # not an error of the service itself
        message = f"no connection to {target}: {message}"
    origin = f"{code.name}/{reason}" if reason else code.name
    typer.echo(f"error: {message} [{origin}]", err=True)


def _reason(call: grpc.Call) -> str:
    """Return the reason in the status's ErrorInfo, or "" if there is none."""
    try:
        status = rpc_status.from_call(call)
    except (ValueError, DecodeError):  # gRPC or a proxy has replaced the service's status
        return ""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info):
            break
    return str(info.reason)
