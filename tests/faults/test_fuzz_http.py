"""Connections with any bytes get documented responses and leave the gateway unchanged.

`tests/gateway_http/test_fuzz.py` tests only JSON. These tests also damage the HTTP around it.
"""

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import pytest

from gateway_http.endpoints import ENDPOINTS
from tests.fakes.wait import failsafe
from tests.faults.fuzzing import LEAKS, NUM_CASES, NUM_WARM_UP, SEED
from tests.faults.http_cases import random_case
from tests.support.programs import Gateway, Service, body, http_client

pytestmark = pytest.mark.slow

# The documented statuses, without those of faults of the gateway, departed clients and timeouts.
_ERRORS = {status for endpoint in ENDPOINTS for status in endpoint.errors} - {500, 499, 504}
DOCUMENTED = {100, 200, 204, 404, 405, 408, *_ERRORS}
# Short timeouts: many requests are incomplete.
TIMEOUTS = (
    *("--head-timeout-s", "0.3", "--body-timeout-s", "0.3"),
    *("--keep-alive-timeout-s", "1", "--write-timeout-s", "5"),
)
_NUM_AT_ONCE = 100
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS = re.compile(rb"(?:\A|\r\n\r\n|\})HTTP/1\.1 (\d{3}) ")


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    service = Service("--max-model-len", "64", step_s=0)
    yield service
    service.close()


@pytest.fixture(scope="module")
def gateway(service: Service) -> Iterator[Gateway]:
    asyncio.run(service.ready())
    gateway = Gateway(*TIMEOUTS, upstream=service.target)
    yield gateway
    gateway.close()


async def exchange(port: int, data: bytes) -> bytes:
    """Send `data` and return all bytes until the gateway closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with failsafe():
            writer.write(data)
            await writer.drain()
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.transport.abort()


def check_error(response: bytes) -> None:
    """Check that the first response, if it is an error, has OpenAI's format, or Anthropic's."""
    head, _, rest = response.removeprefix(_CONTINUE).partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    if b" 200 " in head[:13] or length is None or not int(length[1]) or not rest:
        return  # a response to HEAD has a length but no body
    assert b"application/json" in head
    body = json.loads(rest[: int(length[1])])
    is_anthropic = body.get("type") == "error"
    expected = {"message", "type"} | (set() if is_anthropic else {"param", "code"})
    assert set(body["error"]) == expected


async def test_damaged_requests_over_http_end_in_a_documented_status(
    service: Service, gateway: Gateway
) -> None:
    await gateway.ready()
    port = int(gateway.url.rpartition(":")[2])
    choose = random.Random(SEED)
    cases = (random_case(choose) for _ in range(NUM_CASES))
    statuses: Counter[int] = Counter()
    num_done = rss_bytes = num_fds = 0
    while batch := list(islice(cases, _NUM_AT_ONCE)):
        for case, response in zip(
            batch, await asyncio.gather(*(exchange(port, case) for case in batch)), strict=True
        ):
            label = f"{case[:3000]!r}: {response[:2000]!r}"
            found = [int(status) for status in _STATUS.findall(response)]
            assert found or not response, label
            assert set(found) <= DOCUMENTED, label
            assert not LEAKS.search(response.decode(errors="replace")), label
            check_error(response)
            statuses.update(found)
        num_done += len(batch)
        if num_done <= NUM_WARM_UP:
            await gateway.idle()
            rss_bytes, num_fds = gateway.rss_bytes, gateway.num_fds
    await gateway.idle()
    await service.idle()
    async with http_client(gateway.url) as http:
        assert (await http.post("/v1/chat/completions", json=body())).status_code == 200
    await gateway.has_fds(num_fds)
    grown = gateway.rss_bytes - rss_bytes
    print(f"{num_done} cases, {dict(statuses)}, {grown / 2**20:.1f} MiB more")  # noqa: T201
    assert grown < 32 << 20
    assert statuses[200] > NUM_CASES / 20
    assert statuses[400] > NUM_CASES / 20
    lines = gateway.lines + service.lines
    assert not [line for line in lines if "Traceback" in line or "unforeseen" in line]
