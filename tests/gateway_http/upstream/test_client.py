"""Calls of the gateway to a real gRPC server."""

import asyncio
import re
from contextlib import aclosing
from pathlib import Path

import grpc
import httpx
import pytest
import trustme
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # the compiled core of gRPC

from chatrpc.v1 import chat_pb2, chat_service_pb2
from chatrpc_process.tls import TlsFiles
from gateway_http.upstream.client import OPTIONS as CHANNEL_OPTIONS
from gateway_http.upstream.client import CallOptions, Upstream
from gateway_http.upstream.connection import Connection
from gateway_http.upstream.rpcs import STREAM_CHAT_COMPLETION
from service.domain.model import LocalModel
from service.domain.sampling import SamplingParams
from service.generation.local_backend import locally_served
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.server import Server
from service.rpc.serving.lifecycle import Lifecycle
from tests.fakes.chat_service import Admit, Delta, Fail, FakeService, Finish, Hold
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import EOS, ByteTokenizer
from tests.support.gateway import serving
from tests.support.grpc_server import CARD

REQUEST = chat_service_pb2.StreamChatCompletionRequest(
    params=chat_pb2.ChatCompletionParams(model="m")
)
OPTIONS = CallOptions(timeout_s=30)


def test_every_channel_option_exists_in_grpc() -> None:
    """gRPC ignores unknown keys silently, so each whole key must occur in its binary."""
    binary = Path(cygrpc.__file__).read_bytes()
    for key, _ in CHANNEL_OPTIONS:
        found = re.finditer(re.escape(key.encode()) + rb"\0", binary)
        before = {binary[match.start() - 1 : match.start()] for match in found}
        assert any(not re.match(rb"[A-Za-z_.]", byte) for byte in before), key


async def test_admission_before_the_first_response_is_none(service: FakeService) -> None:
    service.script = [Admit(), Hold(), Delta("Hello"), Finish()]
    upstream = Upstream(Connection(service.target))
    async with aclosing(upstream.stream(STREAM_CHAT_COMPLETION, REQUEST, OPTIONS)) as chunks:
        assert await anext(chunks) is None
        service.release()
        texts = [
            response.chunk.choices[0].delta.content
            async for response in chunks
            if response is not None and response.chunk.choices
        ]
    assert texts == ["Hello", ""]
    await upstream.close()


async def test_rejection_comes_before_the_first_item(service: FakeService) -> None:
    service.script = [Fail(grpc.StatusCode.INVALID_ARGUMENT)]
    upstream = Upstream(Connection(service.target))
    for _ in range(50):
        with pytest.raises(grpc.aio.AioRpcError):
            await anext(upstream.stream(STREAM_CHAT_COMPLETION, REQUEST, OPTIONS))
    await upstream.close()


async def test_closing_the_generator_cancels_the_call(service: FakeService) -> None:
    service.script = [Delta("Hello"), Hold()]
    upstream = Upstream(Connection(service.target))
    chunks = upstream.stream(STREAM_CHAT_COMPLETION, REQUEST, OPTIONS)
    await anext(chunks)
    await chunks.aclose()
    await service.cancelled()
    await upstream.close()


async def test_service_that_comes_back_is_found() -> None:
    async with FakeService() as service:
        port = service.port
    upstream = Upstream(Connection(service.target))
    with pytest.raises(grpc.aio.AioRpcError):
        await upstream.is_ready(timeout_s=5)
    async with FakeService(port=port), asyncio.timeout(120):
        while True:
            try:
                assert await upstream.is_ready(timeout_s=1)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
            else:
                break
    await upstream.close()


async def test_service_is_called_under_tls(tmp_path: Path) -> None:
    ca = trustme.CA()
    certificate, own = ca.issue_cert("localhost"), ca.issue_cert("gateway")
    for name, blobs in (
        ("tls.crt", certificate.cert_chain_pems),
        ("tls.key", [certificate.private_key_pem]),
        ("ca.crt", [ca.cert_pem]),
        ("own.crt", own.cert_chain_pems),
        ("own.key", [own.private_key_pem]),
    ):
        (tmp_path / name).write_bytes(b"".join(blob.bytes() for blob in blobs))
    tls = TlsFiles(tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt")
    lifecycle = Lifecycle(SERVICE_NAMES)
    server = Server(lifecycle, request_timeout_s=60, tls=tls)
    port = await server.start("127.0.0.1", 0)
    await lifecycle.serve(
        locally_served(
            LocalModel(CARD, ByteTokenizer(), FakeEngine(), SamplingParams(), frozenset({EOS}), 257)
        )
    )
    async with (
        serving(
            upstream=f"localhost:{port}",
            upstream_ca=tmp_path / "ca.crt",
            upstream_certificate=tmp_path / "own.crt",
            upstream_key=tmp_path / "own.key",
        ) as url,
        httpx.AsyncClient() as client,
    ):
        assert (await client.get(f"{url}/readyz")).status_code == 200
        assert (await client.get(f"{url}/v1/models")).json()["data"][0]["id"] == "fake"
    await server.stop()
