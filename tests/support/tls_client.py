"""A gRPC client that connects with or without TLS."""

from pathlib import Path
from typing import Any

import grpc
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc


def read(path: Path) -> bytes:
    return path.read_bytes()


async def check(port: int, credentials: grpc.ChannelCredentials | None) -> Any:
    address = f"localhost:{port}"
    channel = (
        grpc.aio.insecure_channel(address)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials)
    )
    async with channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        return await health.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=60)


def trusting(ca: trustme.CA, own: trustme.LeafCert | None = None) -> grpc.ChannelCredentials:
    root = ca.cert_pem.bytes()
    if own is None:
        return grpc.ssl_channel_credentials(root)
    chain = b"".join(blob.bytes() for blob in own.cert_chain_pems)
    return grpc.ssl_channel_credentials(root, own.private_key_pem.bytes(), chain)
