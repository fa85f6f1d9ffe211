"""The table of RPCs agrees with the protos."""

import json
from typing import Any

import pytest

from gateway_http.upstream import rpcs
from gateway_http.upstream.rpcs import RPCS, Rpc
from gateway_http.upstream.service_config import service_config
from tests.support.rpc_methods import METHODS


def test_every_method_of_the_protos_has_a_row() -> None:
    assert {rpc.full_name for rpc in RPCS} == METHODS.keys()
    assert len(RPCS) == len({rpc.full_name for rpc in RPCS})


def test_every_row_of_the_module_is_in_the_table() -> None:
    assert {value for value in vars(rpcs).values() if isinstance(value, Rpc)} == set(RPCS)


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.full_name)
def test_row_agrees_with_its_descriptor(rpc: Rpc[Any, Any]) -> None:
    method = METHODS[rpc.full_name]
    assert rpc.is_streamed == method.server_streaming
    assert not method.client_streaming
    assert rpc.request_type.DESCRIPTOR is method.input_type
    assert rpc.response_type.DESCRIPTOR is method.output_type


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.full_name)
def test_row_of_a_generation_has_a_model_and_an_affinity(rpc: Rpc[Any, Any]) -> None:
    has_params = "params" in rpc.request_type.DESCRIPTOR.fields_by_name
    has_prefix = has_params or "messages" in rpc.request_type.DESCRIPTOR.fields_by_name
    assert (rpc.affinity is not None) == has_prefix
    assert (rpc.operation in {"chat", "text_completion"}) == has_params
    request = rpc.request_type()
    assert rpc.model_of(request) == ""
    if has_params:
        request.params.model = "m"
        assert rpc.model_of(request) == "m"


def test_retryable_rpcs_are_those_of_the_service_config() -> None:
    [methods] = json.loads(service_config("round_robin", "readiness"))["methodConfig"]
    names = {f"{name['service']}/{name['method']}" for name in methods["name"]}
    assert names == {rpc.full_name for rpc in RPCS if rpc.is_retryable}
