"""Authorization by API keys on a real server: valid keys, allowed models, rate limits."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import structlog
from grpc_health.v1 import health_pb2
from structlog.testing import capture_logs

from chatrpc.v1 import (
    caller_pb2,
    chat_pb2,
    model_service_pb2,
)
from chatrpc_process.access.secret import digest_of
from service.domain.engine import Caller, TokenOutput
from service.errors import StepFailed
from service.rpc.calls.authorization import CALLER_KEY
from tests.fakes.wait import until
from tests.support.api_keys import OTHER, SECRET
from tests.support.gateway import serving
from tests.support.guarded_server import MINE, Guarded, guarded
from tests.support.rpc_errors import rpc_error


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    write(path, f'[[key]]\nname = "one"\nsha256 = "{digest_of(SECRET)}"\n')
    return path


def limit(path: Path, line: str) -> None:
    """Add a line to the only key of the file."""
    write(path, f"{path.read_text()}{line}\n")


def write(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


@pytest.mark.parametrize(
    "metadata",
    [
        MINE,
        (("authorization", f"bearer  {SECRET}"),),
        (("x-api-key", SECRET),),
    ],
)
async def test_call_with_a_valid_key_is_served(keys: Path, metadata: Any) -> None:
    async with guarded(keys) as service:
        assert (await service.create(metadata)).completion.choices


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", f"Bearer {OTHER}"),),
        (("authorization", SECRET),),
        (("authorization", "Bearer "),),
        (("authorization", f"Basic {SECRET}"),),
        (("x-api-key", digest_of(SECRET)),),
    ],
)
@pytest.mark.parametrize("call", [Guarded.create, Guarded.stream])
async def test_call_without_a_valid_key_is_rejected(
    keys: Path, metadata: Any, call: Callable[..., Any]
) -> None:
    async with guarded(keys) as service:
        rejected = await rpc_error(call(service, metadata))
        assert rejected.code == grpc.StatusCode.UNAUTHENTICATED
        assert rejected.reason == "UNAUTHENTICATED"
        assert service.engine.requests == []


async def test_list_of_models_requires_a_key(keys: Path) -> None:
    async with guarded(keys) as service:
        request = model_service_pb2.ListModelsRequest()
        rejected = await rpc_error(service.models.ListModels(request))
        assert rejected.code == grpc.StatusCode.UNAUTHENTICATED
        assert (await service.models.ListModels(request, metadata=MINE)).models


async def test_health_check_requires_no_key(keys: Path) -> None:
    async with guarded(keys) as service:
        response = await service.health.Check(health_pb2.HealthCheckRequest())
        assert response.status == health_pb2.HealthCheckResponse.SERVING


async def test_model_outside_the_patterns_of_a_key_is_forbidden(keys: Path) -> None:
    limit(keys, 'models = ["other-*"]')
    async with guarded(keys) as service:
        rejected = await rpc_error(service.create())
        assert rejected.code == grpc.StatusCode.PERMISSION_DENIED
        assert rejected.reason == "MODEL_FORBIDDEN"
        request = model_service_pb2.GetModelRequest(id="fake")
        rejected = await rpc_error(service.models.GetModel(request, metadata=MINE))
        assert rejected.code == grpc.StatusCode.PERMISSION_DENIED


async def test_request_above_the_limit_of_requests_is_rejected(keys: Path) -> None:
    limit(keys, "requests_per_minute = 2")
    async with guarded(keys) as service:
        await service.create()
        await rpc_error(service.create(model=""))  # an authorized call counts although it fails
        rejected = await rpc_error(service.create())
        assert rejected.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert rejected.reason == "LIMIT_REACHED"
        assert 0 < (rejected.retry_after_s or 0) <= 30
        assert "2 requests a minute" in rejected.message


@pytest.mark.parametrize("method", ["Tokenize", "Detokenize"])
async def test_tokenize_and_detokenize_count_as_requests(keys: Path, method: str) -> None:
    limit(keys, "requests_per_minute = 1")
    async with guarded(keys) as service:
        await service.models.ListModels(model_service_pb2.ListModelsRequest(), metadata=MINE)
        requests: dict[str, Any] = {
            "Tokenize": model_service_pb2.TokenizeRequest(model="fake", text="hi"),
            "Detokenize": model_service_pb2.DetokenizeRequest(model="fake", token_ids=[97]),
        }
        call = getattr(service.models, method)
        await call(requests[method], metadata=MINE)
        rejected = await rpc_error(call(requests[method], metadata=MINE))
        assert rejected.reason == "LIMIT_REACHED"
        assert (await rpc_error(service.create())).reason == "LIMIT_REACHED"
        await service.models.ListModels(model_service_pb2.ListModelsRequest(), metadata=MINE)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_tokens_of_a_finished_call_count_against_the_limit(
    keys: Path, is_streamed: bool
) -> None:
    num_tokens = len("<user>hi<assistant>") + 2
    limit(keys, f"tokens_per_minute = {num_tokens}")
    async with guarded(keys) as service:
        if is_streamed:
            assert [r async for r in service.stream()]
        else:
            await service.create()
        rejected = await rpc_error(service.create())
        assert rejected.reason == "LIMIT_REACHED"
        assert "tokens a minute" in rejected.message


async def test_tokens_of_a_cancelled_call_count_against_the_limit(keys: Path) -> None:
    limit(keys, "tokens_per_minute = 10")
    async with guarded(keys) as service:
        service.engine.script = [TokenOutput((97,)), asyncio.Event()]
        call = service.create()
        await until(lambda: service.engine.num_running == 1)
        call.cancel()
        await until(lambda: service.engine.num_running == 0)
        rejected = await rpc_error(service.create())
        assert rejected.reason == "LIMIT_REACHED"
        assert "tokens a minute" in rejected.message


async def test_concurrent_requests_exceed_the_token_limit_by_at_most_one_request(
    keys: Path,
) -> None:
    limit(keys, "tokens_per_minute = 50")
    async with guarded(keys) as service:
        go_on = asyncio.Event()
        service.engine.script.insert(0, go_on)
        sampling = chat_pb2.SamplingParams(max_completion_tokens=100)
        calls = [
            asyncio.ensure_future(_completed(service.create(sampling=sampling))) for _ in range(24)
        ]
        await until(lambda: sum(call.done() for call in calls) == 23)
        rejected = [await rpc_error(call) for call in calls if call.done()]
        [served] = [call for call in calls if not call.done()]
        go_on.set()
        assert (await served).completion.choices
    assert len(service.engine.requests) == 1
    assert {each.reason for each in rejected} == {"LIMIT_REACHED"}
    assert max(each.retry_after_s or 0 for each in rejected) <= 180


async def _completed(call: Any) -> Any:
    return await call


async def test_concurrent_requests_below_the_limit_are_all_served(keys: Path) -> None:
    # Each prompt is tokenized before the next call, so the exact length is reserved.
    num_prompt_tokens, num_tokens = len("<user>hi<assistant>"), 10
    limit(keys, f"tokens_per_minute = {16 * (num_prompt_tokens + num_tokens)}")
    async with guarded(keys) as service:
        go_on = asyncio.Event()
        service.engine.script.insert(0, go_on)
        sampling = chat_pb2.SamplingParams(max_completion_tokens=num_tokens)
        calls = []
        for i in range(16):
            calls.append(asyncio.ensure_future(_completed(service.create(sampling=sampling))))
            await until(lambda: len(service.engine.requests) > i)  # noqa: B023  # awaited here
        go_on.set()
        for completion in await asyncio.gather(*calls):
            assert completion.completion.choices


@pytest.mark.parametrize(
    ("line", "sampling", "field"),
    [
        ("max_concurrent_requests = 3", {"n": 96}, "sampling.n"),
        ("requests_per_minute = 3", {"n": 96}, "sampling.n"),
        (
            "tokens_per_minute = 30",
            {"max_completion_tokens": 100},
            "sampling.max_completion_tokens",
        ),
    ],
)
async def test_request_that_exceeds_a_limit_by_itself_is_invalid(
    keys: Path, line: str, sampling: dict[str, Any], field: str
) -> None:
    limit(keys, line)
    async with guarded(keys) as service:
        call = service.create(sampling=chat_pb2.SamplingParams(**sampling))
        rejected = await rpc_error(call)
        assert rejected.code == grpc.StatusCode.INVALID_ARGUMENT
        assert (rejected.reason, rejected.fields) == ("EXCEEDS_LIMIT", [field])
        assert rejected.retry_after_s is None
        assert "never be admitted" in rejected.message
        assert service.engine.requests == []


async def test_concurrency_limit_counts_sequences(keys: Path) -> None:
    limit(keys, "max_concurrent_requests = 3")
    async with guarded(keys) as service:
        go_on = asyncio.Event()
        service.engine.script.insert(0, go_on)
        two = chat_pb2.SamplingParams(n=2)
        first = asyncio.ensure_future(_completed(service.create(sampling=two)))
        await until(lambda: service.engine.num_running == 1)
        assert (await rpc_error(service.create(sampling=two))).reason == "LIMIT_REACHED"
        go_on.set()
        assert len((await first).completion.choices) == 2


async def test_chat_without_a_token_limit_uses_the_default_of_its_key(keys: Path) -> None:
    limit(keys, "tokens_per_minute = 100000\ndefault_max_tokens = 77")
    async with guarded(keys) as service:
        await service.create()
        await service.create(sampling=chat_pb2.SamplingParams(max_completion_tokens=5))
    assert [r.sampling.max_tokens for r in service.engine.requests] == [77, 5]


async def test_failed_call_reports_its_number_of_tokens(keys: Path) -> None:
    async with guarded(keys) as service:
        service.engine.script = [TokenOutput((97,)), StepFailed()]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.create()
        trailing = dict(caught.value.trailing_metadata())
        assert trailing["chatrpc-num-tokens"] == str(len("<user>hi<assistant>") + 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.create(model="none")
        assert dict(caught.value.trailing_metadata())["chatrpc-num-tokens"] == "0"


async def test_open_stream_counts_against_the_concurrency_limit(keys: Path) -> None:
    limit(keys, "max_concurrent_requests = 1")
    async with guarded(keys) as service:
        go_on = asyncio.Event()
        service.engine.script.insert(1, go_on)
        call = service.stream()
        await call.read()
        rejected = await rpc_error(service.create())
        assert rejected.reason == "LIMIT_REACHED"
        assert "1 concurrent requests" in rejected.message
        call.cancel()
        go_on.set()
        async with asyncio.timeout(120):
            while True:  # it ends when the cancellation has arrived
                with suppress(grpc.aio.AioRpcError):
                    await service.create()
                    break


def acting(**fields: Any) -> tuple[str, bytes]:
    return (CALLER_KEY, caller_pb2.CallerInfo(**fields).SerializeToString())


LEAST_PRIORITY = -(2**31)


@pytest.mark.parametrize(
    ("line", "other", "caller"),
    [
        ("", None, Caller("one", 1, "one", 0)),
        ('owner = "a/b%"\nweight = 5', None, Caller("a%2Fb%25", 5, "a%2Fb%25", 0)),
        ('cache_scope = "shared"\nmin_priority = -7', None, Caller("one", 1, "", -7)),
        (
            "may_act_for_others = true",
            {"name": "x", "weight": 7, "cache_namespace": "y", "min_priority": 3},
            Caller("one/x", 7, "one/y", 3),
        ),
        (
            'may_act_for_others = true\nweight = 9\ncache_scope = "shared"\nmin_priority = -2',
            {"name": "a/b"},
            Caller("one/a/b", 1, "", -2),
        ),
        (
            "may_act_for_others = true\nmin_priority = -2",
            {"name": "x", "min_priority": -5},
            Caller("one/x", 1, "one", -2),
        ),
        ("", {"name": "x", "only_without_keys": True}, Caller("one", 1, "one", 0)),
    ],
)
async def test_engine_request_has_the_caller_of_the_key(
    keys: Path, line: str, other: dict[str, Any] | None, caller: Caller
) -> None:
    limit(keys, line)
    async with guarded(keys) as service:
        await service.create(MINE if other is None else (*MINE, acting(**other)))
    assert [request.caller for request in service.engine.requests] == [caller]


@pytest.mark.parametrize(
    ("other", "caller"),
    [
        (None, Caller("", 1, "", LEAST_PRIORITY)),
        ({"name": "x"}, Caller("/x", 1, "", LEAST_PRIORITY)),
        (
            {"name": "x", "weight": 2, "cache_namespace": "x", "only_without_keys": True},
            Caller("/x", 2, "/x", LEAST_PRIORITY),
        ),
    ],
)
async def test_service_without_keys_accepts_any_caller(
    other: dict[str, Any] | None, caller: Caller
) -> None:
    async with guarded(None) as service:
        await service.create(() if other is None else (acting(**other),))
    assert [request.caller for request in service.engine.requests] == [caller]


async def test_caller_metadata_is_rejected_if_the_key_may_not_act_for_others(keys: Path) -> None:
    async with guarded(keys) as service:
        rejected = await rpc_error(service.create((*MINE, acting(name="x"))))
        assert rejected.code == grpc.StatusCode.PERMISSION_DENIED
        assert rejected.reason == "ACTING_FORBIDDEN"
        assert "may_act_for_others" in rejected.message
        unknown = (("x-api-key", OTHER), acting(name="x"))
        assert (await rpc_error(service.create(unknown))).reason == "UNAUTHENTICATED"
        assert service.engine.requests == []


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ((acting(name="x"), acting(name="x")), CALLER_KEY),
        (((CALLER_KEY, b"\xff"),), CALLER_KEY),
        (((CALLER_KEY, bytes(4097)),), CALLER_KEY),
        ((acting(),), f"{CALLER_KEY}.name"),
        ((acting(name="x" * 129),), f"{CALLER_KEY}.name"),
        ((acting(name="a\nb"),), f"{CALLER_KEY}.name"),
        ((acting(name="x", weight=0),), f"{CALLER_KEY}.weight"),
        ((acting(name="x", weight=101),), f"{CALLER_KEY}.weight"),
        ((acting(name="x", cache_namespace="x" * 129),), f"{CALLER_KEY}.cache_namespace"),
    ],
)
async def test_invalid_description_of_a_caller_is_rejected(
    keys: Path, metadata: tuple[tuple[str, bytes], ...], field: str
) -> None:
    limit(keys, "may_act_for_others = true")
    async with guarded(keys) as service:
        rejected = await rpc_error(service.create((*MINE, *metadata)))
        assert rejected.code == grpc.StatusCode.INVALID_ARGUMENT
        assert rejected.fields == [field]
        assert service.engine.requests == []


async def test_limits_of_a_key_are_shared_by_its_callers(keys: Path) -> None:
    limit(keys, "may_act_for_others = true\nrequests_per_minute = 1")
    async with guarded(keys) as service:
        await service.create((*MINE, acting(name="x")))
        rejected = await rpc_error(service.create((*MINE, acting(name="y"))))
        assert rejected.reason == "LIMIT_REACHED"


async def test_logs_name_the_key_and_the_caller(keys: Path) -> None:
    limit(keys, "may_act_for_others = true")
    async with guarded(keys) as service:
        with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
            await service.create((*MINE, acting(name="x")))
            await until(lambda: any(line["event"] == "request_finished" for line in lines))
    finished = [line for line in lines if line["event"] == "request_finished"]
    assert [(line["key"], line["caller"]) for line in finished] == [("one", "x")]


@pytest.mark.parametrize(
    ("patterns", "names"), [('["other"]', []), ('["fa*"]', ["fake"]), ('["alias"]', ["fake"])]
)
async def test_list_of_models_has_only_the_models_of_the_key(
    keys: Path, patterns: str, names: list[str]
) -> None:
    limit(keys, f"models = {patterns}")
    async with guarded(keys) as service:
        listed = await service.models.ListModels(
            model_service_pb2.ListModelsRequest(), metadata=MINE
        )
        assert [model.id for model in listed.models] == names


async def test_error_for_a_missing_model_names_no_other_model(keys: Path) -> None:
    limit(keys, 'models = ["my-*"]')
    async with guarded(keys) as service:
        for call in (
            service.create(model="my-model"),
            service.models.GetModel(
                model_service_pb2.GetModelRequest(id="my-model"), metadata=MINE
            ),
        ):
            rejected = await rpc_error(call)
            assert rejected.code == grpc.StatusCode.NOT_FOUND
            assert "fake" not in rejected.message


async def test_changed_key_file_replaces_the_keys(keys: Path) -> None:
    async with guarded(keys) as service:
        write(keys, f'[[key]]\nname = "two"\nsha256 = "{digest_of(OTHER)}"\n')
        assert service.keys.refresh()
        rejected = await rpc_error(service.create())
        assert rejected.code == grpc.StatusCode.UNAUTHENTICATED
        await service.create((("x-api-key", OTHER),))


async def test_invalid_key_file_keeps_the_old_keys(keys: Path) -> None:
    async with guarded(keys) as service:
        write(keys, "[[key]]\nname = 1")
        assert not service.keys.refresh()
        await service.create()


async def test_logs_name_the_key_and_never_its_secret(keys: Path) -> None:
    async with guarded(keys) as service:
        with capture_logs() as lines:
            await service.create()
            await rpc_error(service.create((("x-api-key", OTHER),)))
            await until(lambda: len(lines) >= 2)
    assert not any(secret in repr(lines) for secret in (SECRET, OTHER))


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
async def test_gateway_forwards_the_key_of_its_client(keys: Path, name: str) -> None:
    async with (
        guarded(keys) as service,
        serving(upstream=f"127.0.0.1:{service.port}") as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
        rejected = await client.post("/v1/chat/completions", json=body)
        assert rejected.status_code == 401
        assert rejected.json()["error"]["code"] == "invalid_api_key"
        secret = SECRET if name == "x-api-key" else f"Bearer {SECRET}"
        response = await client.post("/v1/chat/completions", json=body, headers={name: secret})
        assert response.status_code == 200
        assert (await client.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("line", "status", "caller"),
    [
        ("may_act_for_others = true", 200, Caller("one/shop", 3, "one/shop", 4)),
        ("", 500, None),
    ],
)
async def test_gateway_with_its_own_key_sends_its_callers(
    keys: Path, tmp_path: Path, line: str, status: int, caller: Caller | None
) -> None:
    limit(keys, line)
    options = 'owner = "shop"\nweight = 3\nmin_priority = 4'
    gateway_keys = tmp_path / "gateway.toml"
    write(gateway_keys, f'[[key]]\nname = "b"\nsha256 = "{digest_of(OTHER)}"\n{options}\n')
    own = tmp_path / "own"
    write(own, SECRET)
    async with (
        guarded(keys) as service,
        serving(
            upstream=f"127.0.0.1:{service.port}", api_keys=gateway_keys, upstream_api_key_file=own
        ) as url,
        httpx.AsyncClient(base_url=url, headers={"x-api-key": OTHER}) as client,
    ):
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
        response = await client.post("/v1/chat/completions", json=body)
        assert response.status_code == status
        assert "may_act_for_others" not in response.text
    assert [r.caller for r in service.engine.requests] == ([] if caller is None else [caller])


@pytest.mark.parametrize("has_keys", [True, False])
async def test_gateway_that_forwards_keys_sends_its_callers_only_to_services_without_keys(
    keys: Path, has_keys: bool
) -> None:
    async with (
        guarded(keys if has_keys else None) as service,
        serving(upstream=f"127.0.0.1:{service.port}", api_keys=keys) as url,
        httpx.AsyncClient(base_url=url, headers={"x-api-key": SECRET}) as client,
    ):
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    caller = Caller("one", 1, "one", 0) if has_keys else Caller("/one", 1, "/one", 0)
    assert [request.caller for request in service.engine.requests] == [caller]


async def test_failed_generation_is_charged_at_the_gateway(keys: Path) -> None:
    limit(keys, "tokens_per_minute = 1000")
    async with (
        guarded(None) as service,
        serving(upstream=f"127.0.0.1:{service.port}", api_keys=keys) as url,
        httpx.AsyncClient(base_url=url, headers={"x-api-key": SECRET}) as client,
    ):
        service.engine.script = [TokenOutput((97,)), StepFailed()]
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 500
        text = {"model": "fake", "content": "hi"}
        response = await client.post("/tokenize", json=text)
        remaining = int(response.headers["x-ratelimit-remaining-tokens"])
        used = len("<user>hi<assistant>") + 1
        assert 1000 - used <= remaining < 1000  # a full minute would refill all of it


async def test_rate_limited_http_client_receives_retry_after(keys: Path) -> None:
    limit(keys, "requests_per_minute = 1")
    async with (
        guarded(keys) as service,
        serving(upstream=f"127.0.0.1:{service.port}") as url,
        httpx.AsyncClient(base_url=url, headers={"x-api-key": SECRET}) as client,
    ):
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
        await client.post("/v1/chat/completions", json=body)
        rejected = await client.post("/v1/chat/completions", json=body)
        assert rejected.status_code == 429
        assert rejected.json()["error"]["type"] == "rate_limit_error"
        assert 0 < int(rejected.headers["retry-after"]) <= 60
