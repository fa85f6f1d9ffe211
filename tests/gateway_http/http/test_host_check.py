"""The names in `Host` that a gateway on this machine accepts."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway_http.http.host_check import host_name, is_local
from tests.fakes.chat_service import FakeService
from tests.support.api_keys import SECRET, key, write
from tests.support.gateway import serving, started

LOCAL = ["localhost", "LOCALHOST:8000", "ui.localhost", "127.0.0.1:80", "10.0.0.1", "[::1]:8000"]
FOREIGN = ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"]


@pytest.mark.parametrize("host", LOCAL)
def test_name_that_no_site_can_have_is_local(host: str) -> None:
    assert is_local(host_name(host))


@pytest.mark.parametrize("host", FOREIGN)
def test_name_of_a_site_is_not_local(host: str) -> None:
    assert not is_local(host_name(host))


async def status(url: str, host: str, path: str = "/v1/models", **headers: str) -> int:
    async with httpx.AsyncClient(verify=False) as http:  # noqa: S501  # plain HTTP
        answer = await http.get(url + path, headers={"host": host} | headers)
    if answer.status_code == 403:
        assert answer.json()["error"]["code"] == "host_not_allowed"
    return answer.status_code


async def test_loopback_gateway_without_keys_rejects_names_of_sites(service: FakeService) -> None:
    async with serving(upstream=service.target) as url:
        for host in LOCAL:
            assert await status(url, host) == 200
        for host in FOREIGN:
            for path in ("/v1/models", "/healthz", "/", "/none"):
                assert await status(url, host, path) == 403


@pytest.mark.parametrize(("allowed", "expected"), [(["api.example"], 403), (["*"], 200)])
async def test_named_hosts_are_allowed(
    service: FakeService, allowed: list[str], expected: int
) -> None:
    async with serving(upstream=service.target, allowed_hosts=allowed) as url:
        assert await status(url, "API.example:80") == 200
        assert await status(url, "evil.example") == expected


@pytest.mark.parametrize("options", [{"host": "0.0.0.0", "insecure": True}, {"api_keys": True}])  # noqa: S104
async def test_other_gateways_do_not_check_hosts(
    service: FakeService, tmp_path: Path, options: dict[str, Any]
) -> None:
    if "api_keys" in options:
        options = {"api_keys": write(tmp_path / "keys.toml", key())}
    async with serving(upstream=service.target, **options) as url:
        assert await status(url, "api.example", authorization=f"Bearer {SECRET}") == 200


async def test_admin_port_on_loopback_checks_hosts(service: FakeService) -> None:
    async with started(upstream=service.target, admin_port=0) as (server, _):
        assert server.admin_address is not None
        url = "http://{}:{}".format(*server.admin_address)
        assert await status(url, "localhost", "/metrics") == 200
        assert await status(url, "evil.example", "/metrics") == 403
