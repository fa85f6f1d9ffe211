"""The recorded responses: where they are, and which request each belongs to."""

from pathlib import Path

from tests.wire.cases import GrpcCall, HttpRequest
from tests.wire.exchange import grpc_response, http_response
from tests.wire.grpc_calls import GRPC_CALLS
from tests.wire.http_requests import HTTP_REQUESTS

_DIRECTORY = Path(__file__).parent / "recorded"

REQUESTS: dict[str, HttpRequest | GrpcCall] = {
    **{f"http/{request.name}": request for request in HTTP_REQUESTS},
    **{f"grpc/{call.name}": call for call in GRPC_CALLS},
}


async def response(request: HttpRequest | GrpcCall) -> str:
    """The whole response to `request` as text, from a service and a gateway started for it."""
    if isinstance(request, HttpRequest):
        return await http_response(request)
    return await grpc_response(request)


def recorded_names() -> set[str]:
    """The names of all recordings that there are."""
    return {str(path.relative_to(_DIRECTORY).with_suffix("")) for path in _DIRECTORY.rglob("*.txt")}


def recorded(name: str) -> str:
    """The recording of the request called `name`. Raises FileNotFoundError if there is none."""
    return _path(name).read_bytes().decode()


def record(name: str, text: str) -> None:
    """Write the recording of the request called `name`."""
    _path(name).parent.mkdir(parents=True, exist_ok=True)
    _path(name).write_bytes(text.encode())


def remove(name: str) -> None:
    """Delete a recording."""
    _path(name).unlink()


def _path(name: str) -> Path:
    return _DIRECTORY / f"{name}.txt"
