"""A gRPC server that serves vLLM's protocol too, and requests of that protocol."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from smg_grpc_proto.generated import vllm_engine_pb2, vllm_engine_pb2_grpc

from service.vllm_protocol.extension import VllmProtocol
from tests.support.grpc_server import Running, served

PROMPT = (104, 105)


@dataclass
class ProtocolRunning:
    """A server under test, and the package's own stub of one client."""

    running: Running
    stub: Any

    async def generate(self, **fields: Any) -> list[Any]:
        """Return the messages of a response."""
        return [response async for response in self.stub.Generate(generate(**fields))]

    async def complete(self, **fields: Any) -> Any:
        """Return the only message of a response without streaming."""
        [response] = await self.generate(**fields)
        return response.complete


def generate(
    token_ids: tuple[int, ...] = PROMPT, *, stream: bool = False, **fields: Any
) -> vllm_engine_pb2.GenerateRequest:
    """Return a request. `fields` with the names of sampling parameters are those."""
    names = vllm_engine_pb2.SamplingParams.DESCRIPTOR.fields_by_name
    sampling = {name: fields.pop(name) for name in list(fields) if name in names}
    if "text" not in fields:
        fields["tokenized"] = vllm_engine_pb2.TokenizedInput(input_ids=token_ids)
    return vllm_engine_pb2.GenerateRequest(
        stream=stream, sampling_params=vllm_engine_pb2.SamplingParams(**sampling), **fields
    )


@asynccontextmanager
async def protocol_served(**options: Any) -> AsyncIterator[ProtocolRunning]:
    """Run a server of the model `fake` with the protocol; `options` are those of `served`."""
    async with served(extensions=[VllmProtocol], **options) as running:
        stub: Any = vllm_engine_pb2_grpc.VllmEngineStub(running.channel)  # type: ignore[no-untyped-call]  # it has no types
        yield ProtocolRunning(running, stub)
