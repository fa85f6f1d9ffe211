"""Request ids and what a call leaves in the log."""

import pytest
import structlog

from chatrpc.v1 import model_service_pb2
from tests.fakes.wait import until
from tests.service.rpc.conftest import Running
from tests.service.rpc.details import refusal


async def test_a_callers_request_id_comes_back(running: Running) -> None:
    call = running.models.ListModels(
        model_service_pb2.ListModelsRequest(), metadata=(("x-request-id", "mine-1"),)
    )
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine-1"


@pytest.mark.parametrize("bad", ["", "a b", "x" * 129])
async def test_a_request_id_that_is_no_id_is_replaced(running: Running, bad: str) -> None:
    call = running.models.ListModels(
        model_service_pb2.ListModelsRequest(), metadata=(("x-request-id", bad),)
    )
    await call
    assert len(str(dict(await call.trailing_metadata())["x-request-id"])) == 32


async def test_an_error_carries_the_request_id_too(running: Running) -> None:
    refused = await refusal(
        running.models.GetModel(
            model_service_pb2.GetModelRequest(id="x"), metadata=(("x-request-id", "mine-2"),)
        )
    )
    assert refused.trailing["x-request-id"] == "mine-2"


async def test_every_call_leaves_one_line(running: Running) -> None:
    with structlog.testing.capture_logs() as lines:
        await running.models.ListModels(model_service_pb2.ListModelsRequest())
        await refusal(running.models.GetModel(model_service_pb2.GetModelRequest(id="x")))
        # A call's client may have its answer before the line is written.
        await until(lambda: len(lines) >= 2)
    calls = [line for line in lines if line["event"] == "call"]
    assert [(line["method"], line["outcome"]) for line in calls] == [
        ("/chatrpc.v1.ModelService/ListModels", "OK"),
        ("/chatrpc.v1.ModelService/GetModel", "MODEL_NOT_FOUND"),
    ]
