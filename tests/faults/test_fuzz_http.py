"""Whatever bytes a connection carries, its answers are documented ones, and the gateway is as
before.

JSON of every shape is in `tests/gateway_http/test_fuzz.py`; here it is the HTTP around it too.
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

# An engine that is full, or a client that leaves, is what happens to anybody here.
_ERRORS = {status for endpoint in ENDPOINTS for status in endpoint.errors} - {500, 499, 504}
DOCUMENTED = {100, 200, 204, 404, 405, 408, *_ERRORS}
# What is incomplete is waited for so long, and there is a lot of it.
PATIENCE = (
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
    gateway = Gateway(*PATIENCE, upstream=service.target)
    yield gateway
    gateway.close()


async def answers(port: int, data: bytes) -> bytes:
    """All that comes back until the gateway hangs up."""
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


def check_error(answer: bytes) -> None:
    """A first answer that is an error is an object of OpenAI's."""
    head, _, rest = answer.removeprefix(_CONTINUE).partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    if b" 200 " in head[:13] or length is None or not int(length[1]) or not rest:
        return  # an answer to HEAD has a length too
    assert b"application/json" in head
    error = json.loads(rest[: int(length[1])])["error"]
    assert set(error) == {"message", "type", "param", "code"}


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
        for case, answer in zip(
            batch, await asyncio.gather(*(answers(port, case) for case in batch)), strict=True
        ):
            label = f"{case[:3000]!r}: {answer[:2000]!r}"
            found = [int(status) for status in _STATUS.findall(answer)]
            assert found or not answer, label
            assert set(found) <= DOCUMENTED, label
            assert not LEAKS.search(answer.decode(errors="replace")), label
            check_error(answer)
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
