"""Calls with any bytes end with a documented status and leave the service unchanged."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from chatrpc.v1 import chat_service_pb2, completion_service_pb2, model_service_pb2
from tests.faults.fuzzing import LEAKS, NUM_CASES, NUM_WARM_UP, SEED
from tests.faults.protobuf_cases import random_case
from tests.support.programs import Client, RealService, chat
from tests.support.tiny_model import save_model

pytestmark = pytest.mark.slow

_NUM_AT_ONCE = 16

METHODS: list[MethodDescriptor] = [
    method
    for module in (
        chat_service_pb2,
        completion_service_pb2,
        model_service_pb2,
        health_pb2,
        reflection_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def _sensible(method: MethodDescriptor) -> Message:
    """Return a valid request, from which damaged ones are made."""
    request: Any = GetMessageClass(method.input_type)()
    match method.input_type.full_name.split(".")[-1]:
        case "CreateChatCompletionRequest" | "StreamChatCompletionRequest":
            request.params.CopyFrom(chat("hi", 3))
            request.params.model = "tiny"
        case "CreateCompletionRequest" | "StreamCompletionRequest":
            request.params.model = "tiny"
            request.params.prompts.add().text = "hi"
        case "GetModelRequest":
            request.id = "tiny"
        case "TokenizeRequest":
            request.model, request.text = "tiny", "hi"
        case "DetokenizeRequest":
            request.model = "tiny"
            request.token_ids.extend([1, 2, 3])
        case "ServerReflectionRequest":
            request.file_containing_symbol = "chatrpc.v1.ChatService"
    return request  # type: ignore[no-any-return]


SENSIBLE = {method: _sensible(method) for method in METHODS}
# The statuses in docs/errors.md, without those of faults of the service.
DOCUMENTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    """Run the whole service, with a model of random weights."""
    model = save_model(tmp_path_factory.mktemp("fuzz") / "tiny", vocab_size=300)
    service = RealService(
        "--model", str(model), "--max-model-len", "64", "--request-timeout-s", "20"
    )
    yield service
    service.close()


async def outcome(channel: Any, method: MethodDescriptor, request: bytes) -> Any:
    """Return status and message of a call. A call that never ends has OK."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    call: Any
    if method.client_streaming:
        call = channel.stream_stream(path)(iter([request]), timeout=60)
    elif method.server_streaming:
        call = channel.unary_stream(path)(request, timeout=60)
    else:
        call = channel.unary_unary(path)(request, timeout=60)
    try:
        if not method.server_streaming:
            await call
        else:
            async for _ in call:
                if method.name == "Watch":
                    break
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    finally:
        call.cancel()
    return grpc.StatusCode.OK, ""


async def test_damaged_requests_over_grpc_end_in_a_documented_status(service: RealService) -> None:
    await service.ready()
    choose = random.Random(SEED)
    statuses: Counter[str] = Counter()
    rss_bytes = num_fds = 0
    async with Client(service.target) as client:
        await client.chat.CreateChatCompletion(usual())
        for done in range(0, NUM_CASES, _NUM_AT_ONCE):
            methods = choose.choices(METHODS, k=_NUM_AT_ONCE)
            cases = [(method, random_case(choose, SENSIBLE[method])) for method in methods]
            outcomes = await asyncio.gather(*(outcome(client.channel, *case) for case in cases))
            for (method, request), (code, words) in zip(cases, outcomes, strict=True):
                case = f"{method.full_name} {request[:2000]!r}: {code} {words}"
                assert code in DOCUMENTED, case
                assert not LEAKS.search(words), case
                statuses[code.name] += 1
            if done <= NUM_WARM_UP:
                await service.idle()
                rss_bytes, num_fds = service.rss_bytes, service.num_fds
        await service.idle()
        response = await client.chat.CreateChatCompletion(usual())
        assert response.completion.usage.completion_tokens == 3
        await service.has_fds(num_fds)
    grown = service.rss_bytes - rss_bytes
    print(f"{sum(statuses.values())} cases, {dict(statuses)}, {grown / 2**20:.1f} MiB more")  # noqa: T201
    assert grown < 48 << 20
    assert statuses["OK"] > NUM_CASES / 20  # not all requests were rejected
    assert statuses["INVALID_ARGUMENT"] > NUM_CASES / 20
    assert not [line for line in service.lines if "Traceback" in line or "unexpected_error" in line]


def usual() -> chat_service_pb2.CreateChatCompletionRequest:
    params = chat("hi", 3)
    params.model = "tiny"
    params.sampling.ignore_eos = True
    return chat_service_pb2.CreateChatCompletionRequest(params=params)
