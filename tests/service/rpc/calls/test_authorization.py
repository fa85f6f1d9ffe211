"""Keys on the calls of a real server: who gets in, to which models, and how often."""

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
    """Add to what the file says of its only key."""
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
async def test_a_known_key_gets_in(keys: Path, metadata: Any) -> None:
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
async def test_nobody_else_does(keys: Path, metadata: Any, call: Callable[..., Any]) -> None:
    async with guarded(keys) as service:
        refused = await rpc_error(call(service, metadata))
        assert refused.code == grpc.StatusCode.UNAUTHENTICATED
        assert refused.reason == "UNAUTHENTICATED"
        assert service.engine.requests == []


async def test_models_are_for_those_who_are_known(keys: Path) -> None:
    async with guarded(keys) as service:
        request = model_service_pb2.ListModelsRequest()
        refused = await rpc_error(service.models.ListModels(request))
        assert refused.code == grpc.StatusCode.UNAUTHENTICATED
        assert (await service.models.ListModels(request, metadata=MINE)).models


async def test_health_asks_nobody(keys: Path) -> None:
    async with guarded(keys) as service:
        answer = await service.health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_key_may_be_for_other_models(keys: Path) -> None:
    limit(keys, 'models = ["other-*"]')
    async with guarded(keys) as service:
        refused = await rpc_error(service.create())
        assert refused.code == grpc.StatusCode.PERMISSION_DENIED
        assert refused.reason == "MODEL_FORBIDDEN"
        request = model_service_pb2.GetModelRequest(id="fake")
        refused = await rpc_error(service.models.GetModel(request, metadata=MINE))
        assert refused.code == grpc.StatusCode.PERMISSION_DENIED


async def test_requests_are_limited(keys: Path) -> None:
    limit(keys, "requests_per_minute = 2")
    async with guarded(keys) as service:
        await service.create()
        await rpc_error(service.create(model=""))  # it counts as well: it was let in
        refused = await rpc_error(service.create())
        assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.reason == "LIMIT_REACHED"
        assert 0 < (refused.retry_after_s or 0) <= 30
        assert "2 requests a minute" in refused.message


@pytest.mark.parametrize("method", ["Tokenize", "Detokenize"])
async def test_what_works_on_text_counts_as_a_request(keys: Path, method: str) -> None:
    limit(keys, "requests_per_minute = 1")
    async with guarded(keys) as service:
        await service.models.ListModels(model_service_pb2.ListModelsRequest(), metadata=MINE)
        requests: dict[str, Any] = {
            "Tokenize": model_service_pb2.TokenizeRequest(model="fake", text="hi"),
            "Detokenize": model_service_pb2.DetokenizeRequest(model="fake", token_ids=[97]),
        }
        call = getattr(service.models, method)
        await call(requests[method], metadata=MINE)
        refused = await rpc_error(call(requests[method], metadata=MINE))
        assert refused.reason == "LIMIT_REACHED"
        assert (await rpc_error(service.create())).reason == "LIMIT_REACHED"
        await service.models.ListModels(model_service_pb2.ListModelsRequest(), metadata=MINE)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_tokens_are_counted_at_the_end(keys: Path, is_streamed: bool) -> None:
    num_tokens = len("<user>hi<assistant>") + 2
    limit(keys, f"tokens_per_minute = {num_tokens}")
    async with guarded(keys) as service:
        if is_streamed:
            assert [r async for r in service.stream()]
        else:
            await service.create()
        refused = await rpc_error(service.create())
        assert refused.reason == "LIMIT_REACHED"
        assert "tokens a minute" in refused.message


async def test_who_leaves_before_the_answer_pays_for_what_was_computed(keys: Path) -> None:
    limit(keys, "tokens_per_minute = 10")
    async with guarded(keys) as service:
        service.engine.script = [TokenOutput((97,)), asyncio.Event()]
        call = service.create()
        await until(lambda: service.engine.num_running == 1)
        call.cancel()
        await until(lambda: service.engine.num_running == 0)
        refused = await rpc_error(service.create())
        assert refused.reason == "LIMIT_REACHED"
        assert "tokens a minute" in refused.message


async def test_requests_at_once_use_no_more_than_the_limit_and_one_request(keys: Path) -> None:
    limit(keys, "tokens_per_minute = 50")
    async with guarded(keys) as service:
        go_on = asyncio.Event()
        service.engine.script.insert(0, go_on)
        sampling = chat_pb2.SamplingParams(max_completion_tokens=100)
        calls = [
            asyncio.ensure_future(_completed(service.create(sampling=sampling))) for _ in range(24)
        ]
        await until(lambda: sum(call.done() for call in calls) == 23)
        refused = [await rpc_error(call) for call in calls if call.done()]
        [served] = [call for call in calls if not call.done()]
        go_on.set()
        assert (await served).completion.choices
    assert len(service.engine.requests) == 1
    assert {each.reason for each in refused} == {"LIMIT_REACHED"}
    assert max(each.retry_after_s or 0 for each in refused) <= 180


async def _completed(call: Any) -> Any:
    return await call


async def test_requests_below_the_limit_are_served_at_once(keys: Path) -> None:
    """Their prompts are tokenized at once, so that their number of bytes does not count."""
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
        refused = await rpc_error(call)
        assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
        assert (refused.reason, refused.fields) == ("EXCEEDS_LIMIT", [field])
        assert refused.retry_after_s is None
        assert "never be admitted" in refused.message
        assert service.engine.requests == []


async def test_sequences_are_limited_not_calls(keys: Path) -> None:
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


async def test_output_of_a_chat_without_a_limit_has_that_of_its_key(keys: Path) -> None:
    limit(keys, "tokens_per_minute = 100000\ndefault_max_tokens = 77")
    async with guarded(keys) as service:
        await service.create()
        await service.create(sampling=chat_pb2.SamplingParams(max_completion_tokens=5))
    assert [r.sampling.max_tokens for r in service.engine.requests] == [77, 5]


async def test_failed_call_says_what_it_has_cost(keys: Path) -> None:
    async with guarded(keys) as service:
        service.engine.script = [TokenOutput((97,)), StepFailed()]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.create()
        trailing = dict(caught.value.trailing_metadata())
        assert trailing["chatrpc-num-tokens"] == str(len("<user>hi<assistant>") + 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.create(model="none")
        assert dict(caught.value.trailing_metadata())["chatrpc-num-tokens"] == "0"


async def test_a_stream_counts_until_it_ends(keys: Path) -> None:
    limit(keys, "max_concurrent_requests = 1")
    async with guarded(keys) as service:
        go_on = asyncio.Event()
        service.engine.script.insert(1, go_on)
        call = service.stream()
        await call.read()
        refused = await rpc_error(service.create())
        assert refused.reason == "LIMIT_REACHED"
        assert "1 concurrent requests" in refused.message
        call.cancel()
        go_on.set()
        async with asyncio.timeout(120):
            while True:  # until the cancellation has arrived
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
async def test_engine_is_told_the_caller(
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
async def test_service_without_keys_takes_the_caller_from_everybody(
    other: dict[str, Any] | None, caller: Caller
) -> None:
    async with guarded(None) as service:
        await service.create(() if other is None else (acting(**other),))
    assert [request.caller for request in service.engine.requests] == [caller]


async def test_key_that_may_not_act_for_others_is_rejected(keys: Path) -> None:
    async with guarded(keys) as service:
        refused = await rpc_error(service.create((*MINE, acting(name="x"))))
        assert refused.code == grpc.StatusCode.PERMISSION_DENIED
        assert refused.reason == "ACTING_FORBIDDEN"
        assert "may_act_for_others" in refused.message
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
        refused = await rpc_error(service.create((*MINE, *metadata)))
        assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
        assert refused.fields == [field]
        assert service.engine.requests == []


async def test_limits_of_a_key_hold_for_all_that_it_acts_for(keys: Path) -> None:
    limit(keys, "may_act_for_others = true\nrequests_per_minute = 1")
    async with guarded(keys) as service:
        await service.create((*MINE, acting(name="x")))
        refused = await rpc_error(service.create((*MINE, acting(name="y"))))
        assert refused.reason == "LIMIT_REACHED"


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
async def test_models_are_listed_for_those_who_may_use_them(
    keys: Path, patterns: str, names: list[str]
) -> None:
    limit(keys, f"models = {patterns}")
    async with guarded(keys) as service:
        listed = await service.models.ListModels(
            model_service_pb2.ListModelsRequest(), metadata=MINE
        )
        assert [model.id for model in listed.models] == names


async def test_error_of_a_missing_model_names_no_other_model(keys: Path) -> None:
    limit(keys, 'models = ["my-*"]')
    async with guarded(keys) as service:
        for call in (
            service.create(model="my-model"),
            service.models.GetModel(
                model_service_pb2.GetModelRequest(id="my-model"), metadata=MINE
            ),
        ):
            refused = await rpc_error(call)
            assert refused.code == grpc.StatusCode.NOT_FOUND
            assert "fake" not in refused.message


async def test_keys_are_read_again(keys: Path) -> None:
    async with guarded(keys) as service:
        write(keys, f'[[key]]\nname = "two"\nsha256 = "{digest_of(OTHER)}"\n')
        assert service.keys.refresh()
        refused = await rpc_error(service.create())
        assert refused.code == grpc.StatusCode.UNAUTHENTICATED
        await service.create((("x-api-key", OTHER),))


async def test_a_file_that_is_broken_later_changes_nothing(keys: Path) -> None:
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
async def test_the_gateway_passes_keys_on(keys: Path, name: str) -> None:
    async with (
        guarded(keys) as service,
        serving(upstream=f"127.0.0.1:{service.port}") as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
        refused = await client.post("/v1/chat/completions", json=body)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        secret = SECRET if name == "x-api-key" else f"Bearer {SECRET}"
        answer = await client.post("/v1/chat/completions", json=body, headers={name: secret})
        assert answer.status_code == 200
        assert (await client.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("line", "status", "caller"),
    [
        ("may_act_for_others = true", 200, Caller("one/shop", 3, "one/shop", 4)),
        ("", 500, None),
    ],
)
async def test_gateway_with_a_key_of_its_own_names_its_callers(
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
        answer = await client.post("/v1/chat/completions", json=body)
        assert answer.status_code == status
        assert "may_act_for_others" not in answer.text
    assert [r.caller for r in service.engine.requests] == ([] if caller is None else [caller])


@pytest.mark.parametrize("has_keys", [True, False])
async def test_gateway_that_passes_keys_on_names_its_callers_to_services_without_keys(
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
        asked = {"model": "fake", "content": "hi"}
        answer = await client.post("/tokenize", json=asked)
        left = int(answer.headers["x-ratelimit-remaining-tokens"])
        used = len("<user>hi<assistant>") + 1
        assert 1000 - used <= left < 1000  # a minute's refill would be all of it


async def test_a_limit_tells_an_http_client_when_to_come_back(keys: Path) -> None:
    limit(keys, "requests_per_minute = 1")
    async with (
        guarded(keys) as service,
        serving(upstream=f"127.0.0.1:{service.port}") as url,
        httpx.AsyncClient(base_url=url, headers={"x-api-key": SECRET}) as client,
    ):
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
        await client.post("/v1/chat/completions", json=body)
        refused = await client.post("/v1/chat/completions", json=body)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert 0 < int(refused.headers["retry-after"]) <= 60
