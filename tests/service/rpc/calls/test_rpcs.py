"""The table of RPCs agrees with the protos."""

from typing import Any

import pytest

from service.rpc.calls.rpcs import BY_PATH, RPCS, SERVICE_NAMES, Rpc
from tests.support.rpc_methods import METHODS

MODEL_FIELDS = ("params.model", "model", "id")


def with_model(rpc: Rpc, model: str) -> Any:
    """Return a request that names a model in the first field that can."""
    request: Any = rpc.request_type()
    for path in MODEL_FIELDS:
        *parents, field = path.split(".")
        message = request
        for parent in parents:
            message = getattr(message, parent, None)
        if message is not None and field in message.DESCRIPTOR.fields_by_name:
            setattr(message, field, model)
            break
    return request


def test_every_method_of_the_protos_has_a_row() -> None:
    assert {rpc.full_name for rpc in RPCS} == METHODS.keys()
    assert len(BY_PATH) == len(RPCS)


def test_service_names_are_those_of_the_protos() -> None:
    assert set(SERVICE_NAMES) == {name.split("/")[0] for name in METHODS}


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.full_name)
def test_row_agrees_with_its_descriptor(rpc: Rpc) -> None:
    method = METHODS[rpc.full_name]
    assert rpc.is_streamed == method.server_streaming
    assert rpc.request_type.DESCRIPTOR is method.input_type
    has_params = "params" in method.input_type.fields_by_name
    assert rpc.is_generation == has_params
    fields = {*method.input_type.oneofs_by_name, *method.input_type.fields_by_name}
    assert not rpc.input_field or rpc.input_field in fields


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.full_name)
def test_model_of_a_request_is_read_from_its_field(rpc: Rpc) -> None:
    expected = "" if rpc.method == "ListModels" else "m"
    assert rpc.model_of(with_model(rpc, "m")) == expected


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.full_name)
def test_output_of_a_response_exists_for_generations_only(rpc: Rpc) -> None:
    response = METHODS[rpc.full_name].output_type._concrete_class()
    assert (rpc.output_of(response) is not None) == rpc.is_generation
    assert (rpc.params_of(rpc.request_type()) is not None) == rpc.is_generation
