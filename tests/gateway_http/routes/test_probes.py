import re

import httpx
import pytest

from tests.fakes.chat_service import FakeService
from tests.support.gateway import serving


@pytest.mark.parametrize("path", ["/readyz", "/health", "/v1/health", "/v1/health/ready"])
async def test_ready_as_the_service_is(
    http: httpx.AsyncClient, service: FakeService, path: str
) -> None:
    assert (await http.get(path)).status_code == 200
    await service.set_ready(False)
    answer = await http.get(path)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "service_unavailable"
    for alive in ("/healthz", "/v1/health/live"):
        assert (await http.get(alive)).status_code == 200


async def test_alive_and_not_ready_without_a_service() -> None:
    async with (
        serving(upstream="127.0.0.1:1") as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/readyz")).status_code == 503


async def test_probes_and_scrapes_are_no_requests(http: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        await http.get(path)
    await http.get("/version")
    page = (await http.get("/metrics")).text
    assert 'chatrpc_gateway_requests_total{model="",route="/version",status="200"} 1.0' in page
    for family in ("requests_total", "request_duration_seconds", "time_to_first_byte_seconds"):
        assert not re.search(f"chatrpc_gateway_{family}.*(healthz|readyz|metrics)", page)
    assert "chatrpc_gateway_requests_in_flight 0.0" in page


async def test_metrics_page_has_prometheus_format(http: httpx.AsyncClient) -> None:
    await http.get("/healthz")
    page = await http.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    assert 'chatrpc_gateway_probes_total{route="/healthz",status="200"} 1.0' in page.text
    assert "process_resident_memory_bytes" in page.text
