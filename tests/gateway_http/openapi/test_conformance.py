"""Random requests made from the OpenAPI document get responses as described, and no server errors.

This is a short run. `schemathesis run` sends thousands to a running gateway (docs/conformance.md).
"""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS
from schemathesis.core.result import Ok

from gateway_http.endpoints import ENDPOINTS
from gateway_http.openapi.document import document
from tests.support.gateway import checking_service, serving
from tests.support.grpc_server import CARD

pytestmark = pytest.mark.slow

SCHEMA = schemathesis.openapi.from_dict(document(ENDPOINTS, "1.0"))
OPERATIONS: list[Any] = [
    result.ok()
    for result in SCHEMA.get_all_operations()
    if isinstance(result, Ok)  # the document has no other
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Yield the URL of a gateway in front of a real gRPC server with a scripted engine."""
    started: list[str] = []
    is_ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with checking_service() as target, serving(upstream=target) as address:
            started.append(address)
            is_ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert is_ready.wait(120)
    yield f"{started[0]}/v1"
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@pytest.mark.parametrize(
    ("operation", "mode"),
    [(operation, GenerationMode.POSITIVE) for operation in OPERATIONS]
    + [(operation, GenerationMode.NEGATIVE) for operation in OPERATIONS if operation.body],
    ids=lambda value: getattr(value, "label", None) or value.name,
)
def test_responses_are_as_described(url: str, operation: Any, mode: GenerationMode) -> None:
    has_input = operation.body or operation.path_parameters
    excluded = [CHECKS.get_one(name) for name in ("positive_data_acceptance",)]

    @settings(
        max_examples=25 if has_input else 1,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), knows_model=st.booleans())
    def check(case: Any, knows_model: bool) -> None:
        if knows_model and isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = CARD.id  # otherwise each body would be rejected for it
        case.call_and_validate(base_url=url, excluded_checks=excluded)

    check()
