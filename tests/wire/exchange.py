"""Send a request and return the whole response as text, with placeholders for varying values."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from typing import Any

import grpc
import httpx
from google.protobuf import descriptor_pool, json_format, message_factory, text_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from chatrpc.v1 import (
    chat_service_pb2,
    completion_service_pb2,
    embedding_service_pb2,
    errors_pb2,
    model_service_pb2,
)
from tests.wire.cases import GrpcCall, HttpRequest
from tests.wire.support import MODEL_CREATED, running_gateway, running_service

# These imports add all messages, also those of error details, to protobuf's pool.
_LOADED = (
    chat_service_pb2,
    completion_service_pb2,
    embedding_service_pb2,
    error_details_pb2,
    errors_pb2,
    health_pb2,
    model_service_pb2,
)

_TIMEOUT_S = 300
_LONG_LINE = 100

# Values that vary between two runs, and their names in a recording. Equal values in a response get
# equal placeholders: the first is `{name}`, a second value is `{name 2}`. Nothing else is replaced.
_VARYING = (
    ("completion id", re.compile(r"(?<=mpl-|msg_)[0-9a-f]{32}")),
    ("tool call id", re.compile(r"(?<=call_)[0-9A-Za-z]{8,}")),
    ("request id", re.compile(r"(?<=req_)[0-9a-f]{32}")),
    ("request id", re.compile(r"(?<=x-request-id: )[0-9a-f]{32}")),
    ("request id", re.compile(r"(?<=under request id )[0-9a-f]{32}")),
    ("created", re.compile(rf'(?<="created":)(?!{MODEL_CREATED})\d+')),
    ("created", re.compile(rf"(?<=create_time {{ seconds: )(?!{MODEL_CREATED})\d+")),
    ("duration", re.compile(r"(?<=openai-processing-ms: )\d+")),
    ("version", re.compile(rf'(?<="version":"){re.escape(version("chatrpc"))}(?=")')),
)


async def http_response(request: HttpRequest) -> str:
    """Return status line, headers (without `date`) and body of the response to `request`."""
    content = request.content
    headers = {"accept-encoding": "identity"}
    if content is None and request.json is not None:
        content = json.dumps(request.json, separators=(",", ":")).encode()
    if content is not None:
        headers["content-type"] = "application/json"
    async with (
        running_service(request.setup) as target,
        running_gateway(request.setup, target) as url,
        httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, verify=False) as client,  # noqa: S501
    ):
        response = await client.request(
            request.method, request.path, content=content, headers=headers | {**request.headers}
        )
    body = response.content
    lines = [f"{response.http_version} {response.status_code} {response.reason_phrase}"]
    lines += _headers(response, len(body))
    return without_varying("\n".join([*lines, "", folded(body.decode()), ""]))


def _headers(response: httpx.Response, body_length: int) -> Iterator[str]:
    """Yield a line for each header but `date`, in the order of the response."""
    for name, value in response.headers.multi_items():
        if name == "content-length" and int(value) == body_length:
            yield f"{name}: {{length of the body}}"  # the lengths of varying values change it
        elif name == "allow":  # the order of a set differs between processes
            yield f"{name}: {', '.join(sorted(value.split(', ')))}"
        elif name != "date":
            yield f"{name}: {value}"


async def grpc_response(call: GrpcCall) -> str:
    """Return messages, status, details and metadata of the response to `call`."""
    async with (
        running_service(call.setup) as target,
        grpc.aio.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        done = _started(channel, call)
        lines: list[str] = []
        try:
            lines += ["initial metadata:", *_metadata(await done.initial_metadata())]
            async for message in done:
                lines += ["", "message:", _text(message)]
        except grpc.aio.AioRpcError:
            pass  # the status is read from the call
        code, details = await done.code(), await done.details()
        lines += ["", f"status: {code.name}", f"details: {details}"]
        lines += ["", "trailing metadata:", *_metadata(await done.trailing_metadata())]
    return without_varying("\n".join([*lines, ""]))


def _started(channel: grpc.aio.Channel, call: GrpcCall) -> Any:
    """Start the call as a stream of messages. A unary call is a stream of one message."""
    service, method = call.method.split("/")
    serialize: Callable[[Any], bytes] = bytes
    deserialize: Callable[[bytes], Any] = bytes
    message: Any = call.message
    try:
        descriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]
    except KeyError:
        message = b""
    else:
        sent = message_factory.GetMessageClass(descriptor.input_type)
        deserialize = message_factory.GetMessageClass(descriptor.output_type).FromString
        if not isinstance(message, bytes):
            message = json_format.ParseDict({**message}, sent()).SerializeToString()
    multicallable = channel.unary_stream(f"/{call.method}", serialize, deserialize)
    return multicallable(message, metadata=call.metadata, timeout=_TIMEOUT_S)


def _metadata(metadata: Iterable[tuple[str, str | bytes]] | None) -> list[str]:
    """Return a line for each entry, sorted by key: gRPC does not keep the order of keys."""
    lines = []
    for key, value in sorted(metadata or (), key=lambda entry: entry[0]):
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            lines.append(f"{key}:\n{_text(status_pb2.Status.FromString(value))}")
        else:
            lines.append(f"{key}: {value!r}" if isinstance(value, bytes) else f"{key}: {value}")
    return lines or ["none"]


def _text(message: Message | bytes) -> str:
    if isinstance(message, bytes):
        return repr(message)
    text = text_format.MessageToString(message, as_utf8=True, print_unknown_fields=True)
    return re.sub(r"(?<=create_time {)\s+(seconds: \d+)\s+(?=})", r" \1 ", text.rstrip("\n"))


def folded(body: str) -> str:
    r"""Break long lines of JSON after commas, by a backslash and a line feed.

    So recordings and their differences are readable. No JSON has a backslash before a line feed.
    So two bodies are equal if and only if they are equal in this form.
    """
    return "\n".join(
        re.sub(r',(?=["{])', ",\\\n", line) if len(line) > _LONG_LINE else line
        for line in body.split("\n")
    )


def without_varying(text: str) -> str:
    """Replace values that differ between two runs by placeholders."""
    names: dict[tuple[str, str], str] = {}

    def placeholder(kind: str, value: str) -> str:
        if (kind, value) not in names:
            number = 1 + sum(known == kind for known, _ in names)
            names[kind, value] = f"{{{kind} {number}}}" if number > 1 else f"{{{kind}}}"
        return names[kind, value]

    for kind, pattern in _VARYING:
        text = pattern.sub(lambda found, kind=kind: placeholder(kind, found[0]), text)  # type: ignore[misc]
    return text
