"""The recorded responses: their files, and the request of each."""

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
    """Start a service and a gateway, and return the whole response to `request` as text."""
    if isinstance(request, HttpRequest):
        return await http_response(request)
    return await grpc_response(request)


def recorded_names() -> set[str]:
    """Return the names of all recordings."""
    return {str(path.relative_to(_DIRECTORY).with_suffix("")) for path in _DIRECTORY.rglob("*.txt")}


def recorded(name: str) -> str:
    """Return the recording of the request `name`. Raise FileNotFoundError if there is none."""
    return _path(name).read_bytes().decode()


def record(name: str, text: str) -> None:
    """Write the recording of the request `name`."""
    _path(name).parent.mkdir(parents=True, exist_ok=True)
    _path(name).write_bytes(text.encode())


def remove(name: str) -> None:
    """Delete a recording."""
    _path(name).unlink()


def _path(name: str) -> Path:
    return _DIRECTORY / f"{name}.txt"
