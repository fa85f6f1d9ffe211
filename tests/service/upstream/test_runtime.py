"""Loading a model from upstreams, their health, keys and certificates."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from chatrpc_process.errors import ConfigError
from service.errors import ModelLoadError, UpstreamAccessDenied, UpstreamDown
from service.upstream import runtime
from service.upstream.failures import AttemptFailed
from service.upstream.runtime import DEFAULT_MODEL_LEN, UpstreamRuntime
from tests.fakes import openai_upstream as fake
from tests.fakes.openai_upstream import FakeUpstream
from tests.fakes.wait import failsafe, until
from tests.service.upstream.serving import serving, settings


async def loading_error(*urls: str, **options: Any) -> str:
    found = UpstreamRuntime(settings(*urls, **options))
    try:
        with pytest.raises(ModelLoadError) as caught:
            await found.load()
    finally:
        await found.stop()
    return str(caught.value)


MODELS: list[dict[str, Any]] = [
    {"id": "a", "owned_by": "vllm", "max_model_len": 50, "created": 5},
    {"id": "b"},
]


async def test_only_model_is_served_under_its_own_name() -> None:
    async with fake.running() as upstream, serving(upstream.url) as served:
        card = served.model.card
        assert (card.id, card.owned_by, card.engine) == (fake.MODEL, "vllm", "openai")
        assert card.max_model_len == DEFAULT_MODEL_LEN
        assert served.model.backend.tokenizer is None
        assert upstream.num_probes == 1


@pytest.mark.parametrize("options", [{"upstream_model": "a"}, {"model": "a"}])
async def test_chosen_model_is_served_under_the_name_of_the_options(
    options: dict[str, str],
) -> None:
    async with fake.running() as upstream:
        upstream.models = MODELS
        given: dict[str, Any] = {"served_model_name": "mine", "model_aliases": ["also"], **options}
        async with serving(upstream.url, **given) as served:
            card = served.model.card
            assert (card.id, card.aliases, card.root) == ("mine", ("also",), "a")
            assert (card.max_model_len, card.created) == (50, 5)
            await served.deltas()
            assert upstream.generations[0]["model"] == "a"


async def test_unknown_model_is_an_error_that_names_the_others() -> None:
    async with fake.running() as upstream:
        upstream.models = MODELS
        error = await loading_error(upstream.url, upstream_model="c")
        assert "'c'" in error
        assert "It serves: a, b." in error
        assert "a, b" in await loading_error(upstream.url)


async def test_upstream_without_a_list_of_models_needs_the_name() -> None:
    async with fake.running() as upstream:
        upstream.handlers["/v1/models"] = fake.replies(fake.response(404, b""))
        assert "upstream_model" in await loading_error(upstream.url)
        async with serving(upstream.url, upstream_model="x") as served:
            assert served.model.card.id == "x"


@pytest.mark.parametrize(
    ("model", "server", "paths", "dialect", "length"),
    [
        ({"owned_by": "vllm", "max_model_len": 9}, "", {}, "vllm", 9),
        ({"owned_by": "sglang", "max_model_len": 9}, "", {}, "sglang", 9),
        ({"owned_by": "chatrpc", "max_model_len": 9}, "", {}, "vllm", 9),
        ({"owned_by": "library"}, "", {}, "ollama", DEFAULT_MODEL_LEN),
        ({"owned_by": "x", "context_length": 9}, "", {}, "openai", 9),
        ({"owned_by": "x"}, "", {"/version": {"version": "0.32"}}, "vllm", DEFAULT_MODEL_LEN),
        ({"owned_by": "x"}, "", {"/version": "hi"}, "openai", DEFAULT_MODEL_LEN),
        ({"owned_by": "llamacpp", "meta": {"n_ctx_train": 9}}, "", {}, "llamacpp", 9),
        (
            {"owned_by": "me", "meta": {"n_ctx_train": 9}},
            "llama.cpp",
            {"/props": {"default_generation_settings": {"n_ctx": 5}}},
            "llamacpp",
            5,
        ),
    ],
)
async def test_kind_and_context_of_the_upstream_are_found(
    model: dict[str, Any], server: str, paths: dict[str, Any], dialect: str, length: int
) -> None:
    async with fake.running() as upstream:
        listed = {"data": [{"id": "m", **model}]}
        upstream.handlers["/v1/models"] = fake.replies(fake.response(200, listed, server=server))
        for path, body in paths.items():
            upstream.handlers[path] = fake.replies(fake.response(200, body))
        async with serving(upstream.url) as served:
            backend = served.model.backend
            assert served.model.card.max_model_len == backend.spec.max_model_len == length
            kinds = {
                "vllm": "sampling.top_k" not in backend.spec.unsupported_fields
                and "sampling.bad_words" not in backend.spec.unsupported_fields,
                "sglang": "sampling.min_tokens" not in backend.spec.unsupported_fields
                and "sampling.bad_words" in backend.spec.unsupported_fields,
                "llamacpp": "sampling.top_k" not in backend.spec.unsupported_fields
                and "sampling.min_tokens" in backend.spec.unsupported_fields,
                "openai": "sampling.n" not in backend.spec.unsupported_fields
                and "sampling.top_k" in backend.spec.unsupported_fields,
                "ollama": "sampling.n" in backend.spec.unsupported_fields,
            }
            assert [kind for kind, is_found in kinds.items() if is_found] == [dialect]


@pytest.mark.parametrize(
    ("model", "quantization", "max_output_tokens"),
    [
        ({}, "", None),
        ({"quantization": "int8", "max_output_tokens": 9}, "int8", 9),
        ({"quantization": {"bits": 4}, "max_completion_tokens": 8}, "", 8),
        ({"max_output_tokens": 0}, "", None),
    ],
)
async def test_description_has_what_the_upstream_reports(
    model: dict[str, Any], quantization: str, max_output_tokens: int | None
) -> None:
    async with fake.running() as upstream:
        upstream.models = [{"id": "m", **model}]
        async with serving(upstream.url) as served:
            card = served.model.card
            assert (card.quantization, card.max_output_tokens) == (quantization, max_output_tokens)


async def test_context_of_the_options_is_a_limit() -> None:
    async with fake.running() as upstream:
        upstream.models = [{"id": "a", "max_model_len": 50}]
        async with serving(upstream.url, max_model_len=20) as served:
            assert served.model.card.max_model_len == 20


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (fake.response(401, {"error": "Unauthorized"}), "rejects this service's access"),
        (fake.response(200, b"<html>"), "does not follow OpenAI's API"),
        (fake.response(301, b"", location="https://x"), "redirected"),
        (fake.response(400, {"error": {"message": "what?"}}), "rejects requests for its models"),
    ],
)
async def test_wrong_upstream_is_an_error_of_the_start(sent: bytes, words: str) -> None:
    async with fake.running() as upstream:
        upstream.handlers["/v1/models"] = fake.replies(sent)
        assert words in await loading_error(upstream.url)


async def test_start_waits_for_an_upstream() -> None:
    upstream = FakeUpstream()
    await upstream.start()
    port = upstream.port
    await upstream.stop()
    started = UpstreamRuntime(settings(upstream.url))
    loading = asyncio.ensure_future(started.load())
    try:
        await asyncio.sleep(0)
        assert started.stats().num_running == 0
        loading_503 = fake.response(503, {"error": {"message": "Loading model"}})
        upstream.handlers["/v1/models"] = fake.replies(loading_503)
        await upstream.start(port)
        await until(lambda: upstream.num_probes > 0)
        assert not loading.done()
        del upstream.handlers["/v1/models"]
        async with failsafe():
            assert (await loading).card.id == fake.MODEL
    finally:
        await started.stop()
        await upstream.stop()


async def test_start_needs_one_of_the_upstreams() -> None:
    async with fake.running() as good, fake.running() as wrong:
        wrong.handlers["/v1/models"] = fake.replies(fake.response(401, b""))
        async with serving(wrong.url, good.url) as served:
            assert await served.text() == "Hi!"
            assert wrong.requests == []


async def test_shortest_context_of_the_upstreams_is_that_of_the_model() -> None:
    async with fake.running() as long, fake.running() as short, fake.running() as unknown:
        long.models = [{"id": "a", "owned_by": "vllm", "max_model_len": 50}]
        short.models = [{"id": "a", "owned_by": "vllm", "max_model_len": 30}]
        unknown.models = [{"id": "a", "owned_by": "vllm"}]
        async with serving(long.url, short.url, unknown.url) as served:
            assert served.model.card.max_model_len == 30


async def test_upstream_of_another_kind_gets_no_requests(capsys: Any) -> None:
    async with fake.running() as vllm, fake.running() as other:
        vllm.models = [{"id": "a", "owned_by": "vllm", "max_model_len": 50}]
        other.models = [{"id": "a", "owned_by": "sglang", "max_model_len": 30}]
        async with serving(vllm.url, other.url) as served:
            assert served.model.card.max_model_len == 50
            assert "is of the kind 'sglang'" in capsys.readouterr().out
            vllm.chat(fake.replies(fake.response(500, b"")))
            for _ in range(2):
                with pytest.raises(UpstreamDown):
                    await served.deltas()
            assert other.requests == []


async def test_dialect_of_the_options_is_that_of_all_upstreams() -> None:
    async with fake.running() as first, fake.running() as other:
        other.models = [{**other.models[0], "owned_by": "sglang"}]
        async with serving(first.url, other.url, upstream_dialect="openai") as served:
            first.chat(fake.replies(fake.response(500, b"")))
            assert await served.text() == "Hi!"


async def test_kind_of_an_upstream_that_comes_back_is_checked() -> None:
    upstream = FakeUpstream()
    await upstream.start()
    async with serving(upstream.url, probe_interval_s=0.01) as served, failsafe():
        port = upstream.port
        await upstream.stop()
        await served.runtime.wait_available(is_available=False)
        upstream.models = [{**upstream.models[0], "owned_by": "sglang"}]
        await upstream.start(port)
        [member] = served.runtime._pool.members
        await until(lambda: member.is_excluded)
        with pytest.raises(UpstreamDown):
            await served.deltas()
        upstream.models = [{**upstream.models[0], "owned_by": "vllm"}]
        await served.runtime.wait_available(is_available=True)
        assert await served.text() == "Hi!"
    await upstream.stop()


async def test_shorter_context_of_an_upstream_that_comes_back_is_logged(capsys: Any) -> None:
    upstream = FakeUpstream(models=[{"id": "a", "owned_by": "vllm", "max_model_len": 50}])
    await upstream.start()
    async with serving(upstream.url, probe_interval_s=0.01) as served, failsafe():
        port = upstream.port
        await upstream.stop()
        await served.runtime.wait_available(is_available=False)
        upstream.models = [{**upstream.models[0], "max_model_len": 30}]
        await upstream.start(port)
        await served.runtime.wait_available(is_available=True)
        assert "upstream_context_is_shorter" in capsys.readouterr().out
    await upstream.stop()


async def test_probes_that_fail_unexpectedly_are_not_repeated_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_calls = 0

    async def broken(*_: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        raise RuntimeError

    async with fake.running() as upstream, serving(upstream.url) as served:
        monkeypatch.setattr(runtime, "find", broken)
        pool = served.runtime._pool
        [member] = pool.members
        pool.note_failure(member, AttemptFailed(UpstreamDown("down"), "down"))
        member.aside_until_s = 0.0
        await until(lambda: num_calls > 0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert num_calls == 1


async def test_availability_follows_the_upstream() -> None:
    upstream = FakeUpstream()
    await upstream.start()
    async with serving(upstream.url, probe_interval_s=0.01) as served, failsafe():
        await served.runtime.wait_available(is_available=True)
        port = upstream.port
        await upstream.stop()
        await served.runtime.wait_available(is_available=False)
        with pytest.raises(UpstreamDown):
            await served.deltas()
        await upstream.start(port)
        await served.runtime.wait_available(is_available=True)
        assert await served.text() == "Hi!"
        upstream.models = [{"id": "another"}]
        await served.runtime.wait_available(is_available=False)
    await upstream.stop()


async def test_key_is_sent_and_read_again(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "key"
    path.write_text("sk-first\n")
    async with (
        fake.running() as upstream,
        serving(upstream.url, upstream_api_key_file=path, probe_interval_s=0.01) as served,
    ):
        await served.deltas()
        assert upstream.requests[0].headers["authorization"] == "Bearer sk-first"
        path.write_text("sk-second")

        async def has_second() -> bool:
            await served.deltas()
            return upstream.requests[-1].headers["authorization"] == "Bearer sk-second"

        await until(has_second)
    assert "sk-" not in capsys.readouterr().out


async def test_revoked_key_makes_the_model_unavailable() -> None:
    async with (
        fake.running() as upstream,
        serving(upstream.url, probe_interval_s=0.01) as served,
        failsafe(),
    ):
        denied = fake.replies(fake.response(401, b""))
        upstream.handlers["/v1/models"] = denied
        upstream.chat(denied)
        await served.runtime.wait_available(is_available=False)
        with pytest.raises(UpstreamAccessDenied):
            await served.deltas()


@pytest.mark.parametrize("option", ["upstream_api_key_file", "upstream_ca"])
def test_file_that_cannot_be_read_is_an_error(tmp_path: Path, option: str) -> None:
    with pytest.raises(ConfigError):
        UpstreamRuntime(settings("http://127.0.0.1:1", **{option: tmp_path / "missing"}))
