"""Request ids, and the log lines of calls."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import structlog

from chatrpc.v1 import chat_pb2, chat_service_pb2, model_service_pb2
from service.domain.engine import FinishReason, TokenOutput
from tests.fakes.wait import until
from tests.support.grpc_server import Running, params
from tests.support.rpc_errors import rpc_error


async def test_request_id_of_the_client_is_returned(running: Running) -> None:
    call = running.models.ListModels(
        model_service_pb2.ListModelsRequest(), metadata=(("x-request-id", "mine-1"),)
    )
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine-1"


@pytest.mark.parametrize("bad", ["", "a b", "x" * 129])
async def test_invalid_request_id_is_replaced(running: Running, bad: str) -> None:
    call = running.models.ListModels(
        model_service_pb2.ListModelsRequest(), metadata=(("x-request-id", bad),)
    )
    await call
    assert len(str(dict(await call.trailing_metadata())["x-request-id"])) == 32


async def test_error_has_the_request_id(running: Running) -> None:
    rejected = await rpc_error(
        running.models.GetModel(
            model_service_pb2.GetModelRequest(id="x"), metadata=(("x-request-id", "mine-2"),)
        )
    )
    assert rejected.trailing["x-request-id"] == "mine-2"


def create(running: Running, timeout: float = 60, **fields: Any) -> Any:
    request = chat_service_pb2.CreateChatCompletionRequest(params=params(**fields))
    return running.chat.CreateChatCompletion(request, timeout=timeout)


def stream(running: Running) -> Any:
    request = chat_service_pb2.StreamChatCompletionRequest(params=params())
    return running.chat.StreamChatCompletion(request)


class Lines:
    """The log lines of calls that have ended."""

    def __init__(self, captured: list[Any]) -> None:
        self._captured = captured

    async def finished(self, number: int = 1) -> list[Any]:
        """Wait for `number` lines and return them.

        A line may be written after the client has received its response.
        """
        await until(lambda: len(self._found()) >= number)
        return self._found()

    def _found(self) -> list[Any]:
        return [line for line in self._captured if line["event"] == "request_finished"]


@pytest.fixture
def lines() -> Iterator[Lines]:
    with structlog.testing.capture_logs() as captured:
        yield Lines(captured)


async def test_each_call_writes_one_log_line(running: Running, lines: Lines) -> None:
    await running.models.ListModels(model_service_pb2.ListModelsRequest())
    await rpc_error(running.models.GetModel(model_service_pb2.GetModelRequest(id="x")))
    listed, rejected = await lines.finished(2)
    assert listed["method"] == "/chatrpc.v1.ModelService/ListModels"
    assert listed["code"] == "OK"
    assert "reason" not in listed
    assert rejected["method"] == "/chatrpc.v1.ModelService/GetModel"
    assert (rejected["code"], rejected["reason"]) == ("NOT_FOUND", "MODEL_NOT_FOUND")
    assert rejected["model"] == "x"
    for line in (listed, rejected):
        assert re.fullmatch(r"127\.0\.0\.1:\d+", line["client"])
        assert line["duration_ms"] > 0


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_log_line_of_a_generation_has_its_tokens_and_times(
    running: Running, lines: Lines, is_streamed: bool
) -> None:
    running.engine.script = [
        TokenOutput((97,), num_cached_tokens=7),
        TokenOutput((98,), FinishReason.LENGTH, num_cached_tokens=7),
    ]
    if is_streamed:
        assert [response async for response in stream(running)]
    else:
        await create(running)
    (line,) = await lines.finished()
    assert line["is_streamed"] is is_streamed
    assert line["model"] == "fake"
    assert line["prompt_tokens"] == len("<user>hi<assistant>")
    assert (line["completion_tokens"], line["cached_tokens"]) == (2, 7)
    assert line["finish_reasons"] == ["length"]
    assert 0 <= line["queue_ms"] <= line["ttft_ms"] <= line["duration_ms"]
    assert line["prefill_ms"] >= 0
    assert line["decode_ms"] >= 0


async def test_log_line_of_a_rejected_request_names_the_field(
    running: Running, lines: Lines
) -> None:
    bad = chat_pb2.SamplingParams(temperature=-1)
    await rpc_error(create(running, sampling=bad))
    (line,) = await lines.finished()
    assert (line["code"], line["reason"]) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert line["field"] == "sampling.temperature"
    assert "completion_tokens" not in line


async def test_log_line_of_a_cancelled_call_has_its_generated_tokens(
    running: Running, lines: Lines
) -> None:
    running.engine.script = [TokenOutput((97,)), asyncio.Event()]
    call = stream(running)
    await call.read()
    call.cancel()
    (line,) = await lines.finished()
    assert (line["code"], line["reason"]) == ("CANCELLED", "CANCELLED")
    assert line["completion_tokens"] == 1


async def test_log_line_after_the_deadline_has_its_reason(running: Running, lines: Lines) -> None:
    running.engine.script = [asyncio.Event()]
    with pytest.raises(grpc.aio.AioRpcError):
        await create(running, timeout=0.3)
    (line,) = await lines.finished()
    assert line["reason"] == "DEADLINE"


async def test_repeated_calls_of_an_unknown_method_are_logged_once(running: Running) -> None:
    call: Any = running.channel.unary_unary("/chatrpc.v1.ChatService/Nothing")
    with structlog.testing.capture_logs() as captured:
        for _ in range(20):
            with pytest.raises(grpc.aio.AioRpcError):
                await call(b"")
    (line,) = [line for line in captured if line["event"] == "request_rejected"]
    assert line["method"] == "/chatrpc.v1.ChatService/Nothing"
    assert line["reason"] == "UNIMPLEMENTED"
