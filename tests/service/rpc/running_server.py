"""A server on a free port over a scripted engine, with whatever options a test wants."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from chatrpc_process.access.keys import load_keys
from chatrpc_process.files.watched import Watched
from service.domain.model import ServedModel
from service.domain.sampling import SamplingParams
from service.rpc.calls.authorization import Access
from service.rpc.server import SERVICE_NAMES, Server
from service.rpc.serving.lifecycle import Lifecycle
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import EOS, ByteTokenizer
from tests.service.rpc.conftest import CARD, Running


@asynccontextmanager
async def served(keys: Path | None = None, **options: Any) -> AsyncIterator[Running]:
    """It serves the model `fake`; `keys` is a file of API keys."""
    engine = FakeEngine()
    engine.answer("ok")
    model = ServedModel(CARD, ByteTokenizer(), engine, SamplingParams(), frozenset({EOS}), 257)
    lifecycle = Lifecycle(SERVICE_NAMES)
    access = None if keys is None else Access(Watched(lambda: load_keys(keys), keys))
    server = Server(lifecycle, request_timeout_s=60, access=access, **options)
    port = await server.start("127.0.0.1", 0)
    await lifecycle.serve(model)
    # Its window stays as small as it begins: who does not read is soon not written to.
    small = [("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", small) as channel:
        yield Running(engine, lifecycle, server, channel, port, model)
    await server.stop()
