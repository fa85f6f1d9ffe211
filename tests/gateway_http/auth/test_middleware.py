"""The gateway's own keys: the callers that they admit, and the keys that the service gets."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from structlog.testing import capture_logs

from chatrpc.v1 import caller_pb2
from gateway_http.app import Environment
from gateway_http.endpoints import ENDPOINTS
from tests.fakes.chat_service import (
    PROMPT_TOKENS,
    Admit,
    Call,
    Delta,
    FakeService,
    Finish,
    Hold,
    model,
)
from tests.fakes.wait import until
from tests.support.api_keys import OTHER, SECRET, key, write
from tests.support.gateway import serving, started
from tests.support.raw_http import RawClient

# The clock stands still, so limits are not refilled on a slow machine.
ENVIRONMENT = Environment(poll_s=0.005, clock=lambda: 0.0)
CHAT = "/v1/chat/completions"
BEARER = {"authorization": f"Bearer {SECRET}"}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return write(tmp_path / "keys.toml", key())


@asynccontextmanager
async def client(keys: Path | None, service: FakeService, **options: Any) -> AsyncIterator[Any]:
    async with (
        serving(environment=ENVIRONMENT, upstream=service.target, api_keys=keys, **options) as url,
        httpx.AsyncClient(base_url=url, timeout=60, headers=BEARER) as http,
    ):
        yield http


def without_key(http: httpx.AsyncClient) -> Any:
    del http.headers["authorization"]
    return http


async def test_only_public_paths_need_no_key(keys: Path, service: FakeService) -> None:
    async with client(keys, service) as http:
        anybody = without_key(http)
        for endpoint in ENDPOINTS:
            for prefix in ("", "/v1", "//v1/"):
                path = prefix + endpoint.path.replace("{model_id}", "org/tiny")
                answer = await anybody.request(endpoint.method, f"{http.base_url}{path}")
                assert answer.status_code == (401 if endpoint.needs_key else 200), path
        for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
            for path in ("/none", "/v1/none", "/healthz/none", "/healthz%2F..%2Fmetrics"):
                assert (await anybody.request(method, path)).status_code == 401
        assert service.calls == []


@pytest.mark.parametrize(
    "headers",
    [
        BEARER,
        {"authorization": f"bearer  {SECRET}"},
        {"x-api-key": SECRET},
        {"authorization": "Basic YTpi", "x-api-key": SECRET},
    ],
)
async def test_known_key_is_accepted(
    keys: Path, service: FakeService, body: dict[str, Any], headers: dict[str, str]
) -> None:
    async with client(keys, service) as http:
        anybody = without_key(http)
        assert (await anybody.post(CHAT, json=body, headers=headers)).status_code == 200
        assert (await anybody.get("/metrics", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, 'Bearer realm="chatrpc"'),
        ({"authorization": SECRET}, 'Bearer realm="chatrpc"'),
        ({"authorization": f"Basic {SECRET}"}, 'Bearer realm="chatrpc"'),
        ({"authorization": f"Bearer {OTHER}"}, 'Bearer realm="chatrpc", error="invalid_token"'),
        ({"x-api-key": f"{SECRET}x"}, 'Bearer realm="chatrpc", error="invalid_token"'),
        ({"x-api-key": "\xe9"}, 'Bearer realm="chatrpc", error="invalid_token"'),
    ],
)
async def test_missing_or_unknown_key_is_rejected(
    keys: Path,
    service: FakeService,
    body: dict[str, Any],
    headers: dict[str, str],
    challenge: str,
) -> None:
    async with client(keys, service) as http:
        without_key(http)
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        for path in (CHAT, f"{CHAT}?api_key={SECRET}&key={SECRET}"):
            answer = await http.post(path, json=body, headers=encoded)
            assert answer.status_code == 401
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
            assert answer.headers["www-authenticate"] == challenge
            assert answer.headers["x-request-id"]
    assert service.calls == []


async def test_pages_may_ask_first_without_a_key(keys: Path, service: FakeService) -> None:
    async with client(keys, service) as http:
        asked = {
            "origin": "https://page",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        }
        answer = await without_key(http).options(CHAT, headers=asked)
        assert answer.status_code == 204
        refused = await http.post(CHAT, headers={"origin": "https://page"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "*"
        assert "x-ratelimit-reset-tokens" in refused.headers["access-control-expose-headers"]


async def test_openai_client_raises_its_own_errors(keys: Path, service: FakeService) -> None:
    write(keys, key(SECRET, 'models = ["org/*"]', "requests_per_minute = 1"))
    question: Any = {"messages": [{"role": "user", "content": "Hi"}]}
    async with serving(environment=ENVIRONMENT, upstream=service.target, api_keys=keys) as url:
        async with openai.AsyncOpenAI(base_url=url, api_key=OTHER, max_retries=0) as stranger:
            with pytest.raises(openai.AuthenticationError):
                await stranger.models.list()
        async with openai.AsyncOpenAI(base_url=url, api_key=SECRET, max_retries=0) as known:
            with pytest.raises(openai.PermissionDeniedError):
                await known.chat.completions.create(model="other", **question)
            raw = await known.chat.completions.with_raw_response.create(model="org/a", **question)
            assert raw.headers["x-ratelimit-remaining-requests"] == "0"
            with pytest.raises(openai.RateLimitError) as caught:
                await known.chat.completions.create(model="org/a", **question)
            assert 0 < int(caught.value.response.headers["retry-after"]) <= 60


async def test_models_are_shown_to_those_who_may_use_them(keys: Path, service: FakeService) -> None:
    service.models = [model("big"), model("small", ("tiny-1",)), model("tiny-2")]
    write(keys, key(SECRET, 'models = ["tiny-*"]'))
    async with client(keys, service) as http:
        listed = (await http.get("/v1/models")).json()["data"]
        assert [each["id"] for each in listed] == ["small", "tiny-2"]
        assert (await http.get("/v1/models/tiny-1")).status_code == 200
        assert (await http.get("/v1/models/big")).status_code == 403
        tokens = {"content": "Hi"}
        assert (await http.post("/tokenize", json=tokens)).status_code == 200
        assert [call.params.model for call in service.calls] == ["small"]
        for path in ("/tokenize", "/detokenize"):
            refused = await http.post(path, json={"model": "big", "prompt": "x", "tokens": [1]})
            assert refused.status_code in {400, 403}
        assert len(service.calls) == 1


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_responses_have_rate_limit_headers(
    keys: Path, service: FakeService, is_streamed: bool, path: str
) -> None:
    write(keys, key(SECRET, "requests_per_minute = 2", "tokens_per_minute = 9"))
    async with client(keys, service) as http:
        body: dict[str, Any] = {"model": "org/tiny", "stream": is_streamed}
        message = {"role": "user", "content": ""}
        body |= {"messages": [message]} if path == CHAT else {"prompt": ""}
        answer = await http.post(path, json=body)
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.headers["x-ratelimit-remaining-requests"] == "1"
        reset_s = answer.headers["x-ratelimit-reset-requests"].removesuffix("s")
        assert 0 < float(reset_s) <= 30
        assert answer.headers["x-ratelimit-limit-tokens"] == "9"
        # The head of a stream is sent while the request's maximum cost is reserved.
        left = 0 if is_streamed else 9 - PROMPT_TOKENS - 2
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) == left
        refused = await http.post(path, json=body)
        assert refused.status_code == 429
        assert "tokens a minute" in refused.json()["error"]["message"]
        assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
        assert "x-ratelimit-limit-tokens" not in (await http.get("/v1/models")).headers


async def tokens_left(http: httpx.AsyncClient) -> int:
    answer = await http.post("/tokenize", json={"content": "Hi"})
    return int(answer.headers["x-ratelimit-remaining-tokens"])


async def test_client_that_leaves_a_stream_is_charged_what_was_generated(
    keys: Path, service: FakeService, body: dict[str, Any]
) -> None:
    write(keys, key(SECRET, "tokens_per_minute = 100", "max_concurrent_requests = 1"))
    service.script = [Admit(), Delta("Hello", num_tokens=90), Hold()]
    async with client(keys, service) as http:
        async with RawClient(str(http.base_url)) as raw:
            await raw.post(body | {"stream": True}, headers=BEARER)
            await raw.read_until(b"Hello")
            refused = await http.post(CHAT, json=body)
            assert refused.status_code == 429
            assert "1 concurrent requests" in refused.json()["error"]["message"]
            await raw.reset()
        await service.cancelled()
        async with asyncio.timeout(120):
            while (await http.post("/tokenize", json={"content": "Hi"})).status_code != 200:
                pass  # until the end of the first request has been counted
        assert await tokens_left(http) == 100 - 90  # this service reports its prompt at the end


async def test_client_that_leaves_a_whole_response_is_charged_its_reservation(
    keys: Path, service: FakeService, body: dict[str, Any]
) -> None:
    """Send ten requests and leave each before its end. The limit is enough for one."""
    write(keys, key(SECRET, "tokens_per_minute = 100"))
    service.script = [Admit(), Hold()]
    async with client(keys, service) as http:
        async with RawClient(str(http.base_url)) as raw:
            await raw.post(body | {"max_tokens": 90}, headers=BEARER)
            await service.called()
            await raw.reset()
        await service.cancelled()
        for _ in range(9):
            assert (await http.post(CHAT, json=body)).status_code == 429
        assert await tokens_left(http) == 0
    assert len(service.calls) == 2  # the other call is that of /tokenize


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_requests_at_once_use_no_more_than_the_limit_and_one_request(
    keys: Path, service: FakeService, body: dict[str, Any], is_streamed: bool
) -> None:
    write(keys, key(SECRET, "tokens_per_minute = 50"))
    service.script = [Admit(), Hold(), Delta("x", num_tokens=93), Finish()]
    async with client(keys, service) as http:
        asked = body | {"max_tokens": 93, "stream": is_streamed}
        answers = [asyncio.ensure_future(http.post(CHAT, json=asked)) for _ in range(24)]
        await until(lambda: sum(task.done() for task in answers) == 23)
        service.release()
        statuses = sorted([(await answer).status_code for answer in answers])
        assert statuses == [200, *[429] * 23]
        waits_s = [int((await a).headers.get("retry-after", "0")) for a in answers]
        assert 60 <= max(waits_s) <= 180
    assert len(service.calls) == 1


async def test_requests_below_the_limit_are_served_at_once(
    keys: Path, service: FakeService, body: dict[str, Any]
) -> None:
    """Send requests of sixteen workers that set no output limit."""
    write(keys, key(SECRET, "tokens_per_minute = 20000"))
    service.script = [Admit(), Hold(), Delta("x"), Finish()]
    async with client(keys, service) as http:
        answers = [asyncio.ensure_future(http.post(CHAT, json=body)) for _ in range(16)]
        await service.called(16)
        service.release()
        assert {answer.status_code for answer in await asyncio.gather(*answers)} == {200}
        assert await tokens_left(http) == 20_000 - 16 * (PROMPT_TOKENS + 1)
    [granted] = {call.params.sampling.max_completion_tokens for call in service.calls[:16]}
    assert granted == 1024


@pytest.mark.parametrize(
    ("path", "asked", "param"),
    [
        (CHAT, {"n": 96}, "n"),
        ("/v1/completions", {"prompt": ["a", "b", "c", "d"]}, "prompt"),
        ("/v1/completions", {"prompt": "a", "n": 4}, "n"),
    ],
)
async def test_request_of_more_sequences_than_its_limit_is_never_admitted(
    keys: Path,
    service: FakeService,
    body: dict[str, Any],
    path: str,
    asked: dict[str, Any],
    param: str,
) -> None:
    write(keys, key(SECRET, "max_concurrent_requests = 3"))
    async with client(keys, service) as http:
        given = body | asked if path == CHAT else {"model": body["model"], **asked}
        refused = await http.post(path, json=given)
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert (error["param"], error["code"]) == (param, "request_exceeds_limit")
        assert "retry-after" not in refused.headers
    assert service.calls == []


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_tokenizing_counts_as_a_request(keys: Path, service: FakeService, path: str) -> None:
    write(keys, key(SECRET, "requests_per_minute = 1"))
    asked = {"prompt": "Hi"} if path == "/tokenize" else {"tokens": [72]}
    async with client(keys, service) as http:
        answer = await http.post(path, json={"model": "org/tiny", **asked})
        assert (answer.status_code, answer.headers["x-ratelimit-remaining-requests"]) == (200, "0")
        refused = await http.post(path, json={"model": "org/tiny", **asked})
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "60"
    assert len(service.calls) == 1


async def test_keys_of_one_owner_share_their_limits(
    keys: Path, service: FakeService, body: dict[str, Any]
) -> None:
    limit = "requests_per_minute = 1"
    write(keys, key(SECRET, limit) + key(OTHER, 'owner = "one"', limit, name="one-2"))
    async with client(keys, service) as http:
        assert (await http.post(CHAT, json=body)).status_code == 200
        other = {"authorization": f"Bearer {OTHER}"}
        assert (await http.post(CHAT, json=body, headers=other)).status_code == 429


async def test_rejected_body_is_not_counted(
    keys: Path, service: FakeService, body: dict[str, Any]
) -> None:
    write(keys, key(SECRET, "requests_per_minute = 1"))
    async with client(keys, service) as http:
        assert (await http.post(CHAT, json={})).status_code == 400
        assert (await http.post(CHAT, json=body)).status_code == 200


@pytest.mark.parametrize(
    "given",
    [
        [("authorization", f"Bearer {SECRET}")],
        [("x-api-key", SECRET)],
        [("authorization", f"Bearer {SECRET}"), ("x-api-key", OTHER)],
        [("x-api-key", SECRET), ("authorization", f"Bearer {OTHER}")],
        [("authorization", "Basic eDp5"), ("x-api-key", SECRET), ("x-api-key", OTHER)],
    ],
)
@pytest.mark.parametrize("asks", [True, False])
async def test_callers_key_is_passed_on_to_the_service(
    keys: Path,
    service: FakeService,
    body: dict[str, Any],
    given: list[tuple[str, str]],
    asks: bool,
) -> None:
    """Only the key that the gateway has checked is passed on."""
    async with client(keys if asks else None, service) as http:
        answer = await without_key(http).post(CHAT, json=body, headers=given)
        assert answer.status_code == 200
    shown = service.calls[0].metadata
    assert shown["authorization"] == f"Bearer {SECRET}"
    assert "x-api-key" not in shown
    assert OTHER not in str(shown)


async def test_or_the_gateways_own(
    keys: Path, service: FakeService, body: dict[str, Any], tmp_path: Path
) -> None:
    own = write(tmp_path / "own", "sk-own-1\n")
    async with client(keys, service, upstream_api_key_file=own) as http:
        await http.post(CHAT, json=body, headers={"x-api-key": SECRET})
        shown = service.calls[0].metadata
        assert shown["authorization"] == "Bearer sk-own-1"
        assert "x-api-key" not in shown
        write(own, "two\nlines")  # this is not a key, so the old key stays in use
        write(own, "sk-own-2")
        while service.calls[-1].metadata["authorization"] != "Bearer sk-own-2":
            await http.post(CHAT, json=body)
        assert SECRET not in str([call.metadata for call in service.calls])


def caller_info(call: Call) -> caller_pb2.CallerInfo:
    value = call.metadata["chatrpc-caller-bin"]
    assert isinstance(value, bytes)
    return caller_pb2.CallerInfo.FromString(value)


@pytest.mark.parametrize("has_own_key", [True, False])
async def test_owner_of_the_key_is_sent_to_the_service(
    keys: Path, service: FakeService, body: dict[str, Any], tmp_path: Path, has_own_key: bool
) -> None:
    write(keys, key(SECRET, 'owner = "team"', "weight = 3", "min_priority = -1"))
    own = write(tmp_path / "own", "sk-own-1\n") if has_own_key else None
    async with client(keys, service, upstream_api_key_file=own) as http:
        forged = caller_pb2.CallerInfo(name="other").SerializeToString()
        headers = {"chatrpc-caller-bin": base64.b64encode(forged).decode()}
        await http.post(CHAT, json=body, headers=headers)
        await http.post(CHAT, json=body | {"stream": True})
        await http.post("/tokenize", json={"content": "Hi"})
    assert len(service.calls) == 3
    for call in service.calls:
        assert caller_info(call) == caller_pb2.CallerInfo(
            name="team",
            weight=3,
            cache_namespace="team",
            min_priority=-1,
            only_without_keys=not has_own_key,
        )


async def test_callers_without_keys_have_no_identity(
    service: FakeService, body: dict[str, Any]
) -> None:
    async with client(None, service) as http:
        await http.post(CHAT, json=body)
    assert "chatrpc-caller-bin" not in service.calls[0].metadata


@contextmanager
def reloads() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


async def test_keys_are_read_again_and_a_broken_file_leaves_the_old_ones(
    keys: Path, service: FakeService, body: dict[str, Any]
) -> None:
    async with client(keys, service) as http:
        with reloads() as lines:
            write(keys, f"[[key]]\nname = {SECRET}")
            await until(lambda: any(line["event"] == "file_reload_failed" for line in lines))
        assert SECRET not in repr(lines)
        assert (await http.post(CHAT, json=body)).status_code == 200
        with reloads() as lines:
            write(keys, key(OTHER))
            await until(lambda: any(line["event"] == "file_reloaded" for line in lines))
        assert (await http.post(CHAT, json=body)).status_code == 401
        known = await http.post(CHAT, json=body, headers={"authorization": f"Bearer {OTHER}"})
        assert known.status_code == 200


async def test_metrics_need_a_key_for_all_models(keys: Path, service: FakeService) -> None:
    write(keys, key(SECRET, 'models = ["nothing-*"]') + key(OTHER, name="operator"))
    async with client(keys, service) as http:
        for path in ("/metrics", "/v1/metrics"):
            refused = await http.get(path)
            assert refused.status_code == 403
            assert refused.json()["error"]["code"] == "permission_denied"
            answer = await http.get(path, headers={"authorization": f"Bearer {OTHER}"})
            assert answer.status_code == 200
            name = "chatrpc_config_last_reload_successful"
            assert f'{name}{{file="{keys}"}} 1.0' in answer.text


async def test_metrics_are_served_only_on_the_admin_port_if_there_is_one(
    keys: Path, service: FakeService
) -> None:
    options: dict[str, Any] = {"api_keys": keys, "admin_port": 0}
    async with (
        started(environment=ENVIRONMENT, upstream=service.target, **options) as (server, url),
        httpx.AsyncClient(headers=BEARER) as http,
    ):
        assert server.admin_address is not None
        admin = "http://{}:{}/metrics".format(*server.admin_address)
        assert (await http.get(admin)).status_code == 200
        assert (await http.get(f"{url}/metrics")).status_code == 404


async def test_pipelined_requests_are_each_asked(keys: Path, service: FakeService) -> None:
    """The second request begins in the context of the first."""
    async with (
        serving(environment=ENVIRONMENT, upstream=service.target, api_keys=keys) as url,
        RawClient(url) as raw,
    ):
        with capture_logs() as lines:
            head = f"GET /version HTTP/1.1\r\nHost: localhost\r\nx-api-key: {SECRET}\r\n\r\n"
            await raw.send(head.encode() + b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in await raw.read_until(b"\r\n\r\n")
            assert b" 401 " in await raw.read_until(b"is required")
            finished = "request_finished"
            await until(lambda: sum(line["event"] == finished for line in lines) == 2)


async def test_limits_hold_for_all_of_a_keys_requests_together(
    keys: Path, service: FakeService, body: dict[str, Any]
) -> None:
    write(keys, key(SECRET, "max_concurrent_requests = 3") + key(OTHER, name="two"))
    service.script = [Admit(), Hold(), Delta("x")]
    async with client(keys, service) as http:
        mine = [asyncio.ensure_future(http.post(CHAT, json=body)) for _ in range(8)]
        await until(lambda: sum(task.done() for task in mine) == 5)
        theirs = asyncio.ensure_future(
            http.post(CHAT, json=body, headers={"authorization": f"Bearer {OTHER}"})
        )
        await service.called(4)
        service.release()
        assert sorted(answer.status_code for answer in await asyncio.gather(*mine)) == [
            *[200] * 3,
            *[429] * 5,
        ]
        assert (await theirs).status_code == 200
