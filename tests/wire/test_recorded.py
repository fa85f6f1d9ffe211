"""Responses of gRPC and HTTP equal the recorded ones.

If a change of a response is intended, write new recordings: `python -m tests.wire.record`.
"""

import difflib

import pytest

from tests.wire.grpc_calls import GRPC_CALLS
from tests.wire.http_requests import HTTP_REQUESTS
from tests.wire.recordings import REQUESTS, recorded, recorded_names, response


@pytest.mark.parametrize("name", REQUESTS)
async def test_response_equals_recording(name: str) -> None:
    expected, current = recorded(name), await response(REQUESTS[name])
    if current != expected:
        difference = difflib.unified_diff(
            expected.split("\n"), current.split("\n"), "recorded", "current", lineterm=""
        )
        pytest.fail("\n".join([f"The response to {name} has changed.", *difference]), pytrace=False)


def test_each_request_has_one_recording() -> None:
    assert len(REQUESTS) == len(HTTP_REQUESTS) + len(GRPC_CALLS)
    assert recorded_names() == REQUESTS.keys()
