"""A gateway whose registry mixes services with different engines, under the OpenAI client."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from service.config import ServiceSettings
from service.domain.backend import ServedModel
from service.domain.engine import EngineCapabilities
from service.domain.model import LocalModel
from service.domain.sampling import SamplingParams
from service.generation.local_backend import locally_served
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.server import Server
from service.rpc.serving.lifecycle import Lifecycle
from service.upstream.runtime import UpstreamRuntime
from tests.fakes import openai_upstream as fake
from tests.fakes.engine import FakeEngine
from tests.fakes.grammars import byte_grammars
from tests.fakes.tokenizer import EOS, ByteTokenizer
from tests.support.gateway import serving
from tests.support.grpc_server import CARD

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
TEXTS = {"small": "from local", "org/large": "from vllm", "hosted": "Hi!"}
NAMES = tuple(TEXTS)
EMBEDDINGS = {
    "data": [{"index": 1, "embedding": [0.5, 1.5]}, {"index": 0, "embedding": [0.25, 2]}],
    "usage": {"prompt_tokens": 3},
}


def by_engine(capabilities: EngineCapabilities, text: str) -> ServedModel:
    """Return a model whose engine has these capabilities and generates `text`."""
    engine = FakeEngine()
    engine.capabilities = capabilities
    engine.answer(text)
    card = replace(CARD, id="own-name", engine=capabilities.name)
    model = LocalModel(
        card, ByteTokenizer(), engine, SamplingParams(), frozenset({EOS}), 257,
        grammars=byte_grammars(),
    )  # fmt: skip
    return locally_served(model)


@asynccontextmanager
async def remote() -> AsyncIterator[ServedModel]:
    """Provide a model of a hosted service with OpenAI's API."""
    async with fake.running() as upstream:
        upstream.models = [{"id": fake.MODEL, "owned_by": "somebody"}]
        upstream.handlers["/v1/embeddings"] = fake.replies(fake.response(200, EMBEDDINGS))
        options: dict[str, Any] = {"engine": "openai", "upstream_url": [upstream.url]}
        runtime = UpstreamRuntime(ServiceSettings(**options))
        try:
            model = await runtime.load()
            yield replace(model, card=replace(model.card, id="own-name"))
        finally:
            await runtime.stop()


@asynccontextmanager
async def service_of(model: ServedModel) -> AsyncIterator[str]:
    """Run a service of one model. Yield its target."""
    lifecycle = Lifecycle(SERVICE_NAMES)
    server = Server(lifecycle, request_timeout_s=60)
    port = await server.start("127.0.0.1", 0)
    await lifecycle.serve(model)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop()


@pytest.fixture
async def mixed_url(tmp_path: Path) -> AsyncIterator[str]:
    local = EngineCapabilities("local", is_batch_invariant=True)
    vllm = EngineCapabilities("vllm", frozenset({"bad_token_sequences"}), max_logprobs=5)
    async with AsyncExitStack() as stack:
        models = (
            by_engine(local, TEXTS["small"]),
            by_engine(vllm, TEXTS["org/large"]),
            await stack.enter_async_context(remote()),
        )
        targets = [await stack.enter_async_context(service_of(model)) for model in models]
        registry = tmp_path / "registry.toml"
        registry.write_text(
            "".join(
                f'[[model]]\nname = "{name}"\ntarget = "{target}"\nupstream_model = "own-name"\n'
                for name, target in zip(NAMES, targets, strict=True)
            )
        )
        yield await stack.enter_async_context(serving(registry=registry))


@pytest.fixture
async def client(mixed_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{mixed_url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


@pytest.mark.parametrize("name", NAMES)
async def test_every_service_generates_under_its_name(
    client: openai.AsyncOpenAI, name: str
) -> None:
    completion = await client.chat.completions.create(model=name, messages=MESSAGES)
    assert (completion.model, completion.choices[0].message.content) == (name, TEXTS[name])
    stream = await client.chat.completions.create(model=name, messages=MESSAGES, stream=True)
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert ({chunk.model for chunk in chunks}, text) == ({name}, TEXTS[name])


async def test_list_has_the_engine_and_the_capabilities_of_every_model(
    client: openai.AsyncOpenAI,
) -> None:
    listed: dict[str, Any] = {model.id: model.model_extra async for model in client.models.list()}
    assert {name: listed[name]["engine"] for name in listed} == {
        "small": "local",
        "org/large": "vllm",
        "hosted": "openai",
    }
    common = {
        "input_modalities": ["text"],
        "output_modalities": ["text"],
        "embeddings": False,
        "tokenization": True,
        "tools": True,
        "reasoning": False,
    }
    assert listed["small"]["capabilities"] == common | {
        "unsupported_parameters": [],
        "structured_outputs": True,
        "max_logprobs": 20,
        "is_batch_invariant": True,
    }
    assert listed["org/large"]["capabilities"] == common | {
        "unsupported_parameters": ["bad_words"],
        "structured_outputs": True,
        "max_logprobs": 5,
        "is_batch_invariant": False,
    }
    hosted = listed["hosted"]["capabilities"]
    unsupported = hosted.pop("unsupported_parameters")
    assert {"top_k", "prompt_logprobs", "structured_outputs.regex"} <= set(unsupported)
    assert not {"temperature", "tools", "stop"} & set(unsupported)
    assert hosted == {
        "input_modalities": ["text", "image"],
        "output_modalities": ["text"],
        "tools": True,
        "embeddings": True,
        "tokenization": False,
        "structured_outputs": True,
        "max_logprobs": 20,
        "is_batch_invariant": False,
    }
    retrieved = await client.models.retrieve("org/large")
    assert retrieved.model_extra == listed["org/large"]
    assert retrieved.shutdown_date is None
    assert listed["hosted"]["tasks"] == ["generate", "embed"]


async def test_unknown_model_is_not_found(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="own-name", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("own-name")
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model="own-name", input="a")


@pytest.mark.parametrize(
    ("name", "fields", "param"),
    [
        ("org/large", {"extra_body": {"bad_words": ["x"]}}, "bad_words"),
        ("org/large", {"logprobs": True, "top_logprobs": 6}, "top_logprobs"),
        ("hosted", {"extra_body": {"top_k": 5}}, "top_k"),
        ("hosted", {"extra_body": {"prompt_logprobs": 0}}, "prompt_logprobs"),
        ("small", {"extra_body": {"use_beam_search": True}}, "use_beam_search"),
    ],
)
async def test_parameter_that_a_model_does_not_support_is_named(
    client: openai.AsyncOpenAI, name: str, fields: Any, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=name, messages=MESSAGES, **fields)
    assert caught.value.param == param


async def test_parameter_that_another_model_does_not_support_is_served(
    client: openai.AsyncOpenAI,
) -> None:
    completion = await client.chat.completions.create(
        model="small", messages=MESSAGES, extra_body={"top_k": 5, "bad_words": ["x"]}
    )
    assert completion.choices[0].message.content == TEXTS["small"]


async def test_only_the_model_with_embeddings_serves_them(client: openai.AsyncOpenAI) -> None:
    created = await client.embeddings.create(model="hosted", input=["a", "bc"])
    assert (created.model, created.usage.total_tokens) == ("hosted", 3)
    assert [each.embedding for each in created.data] == [[0.25, 2], [0.5, 1.5]]
    for name in ("small", "org/large"):
        with pytest.raises(openai.BadRequestError, match="does not support CreateEmbeddings"):
            await client.embeddings.create(model=name, input="a")


async def test_image_reaches_only_the_model_that_takes_images(client: openai.AsyncOpenAI) -> None:
    image: Any = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "hi"}, image]}]
    seen = await client.chat.completions.create(model="hosted", messages=messages)
    assert seen.choices[0].message.content == TEXTS["hosted"]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="small", messages=messages)
    assert caught.value.param == "messages[0].content[1]"


async def test_tokens_of_a_model_without_a_tokenizer_are_rejected(mixed_url: str) -> None:
    async with httpx.AsyncClient(base_url=mixed_url, timeout=60) as http:
        for name, status in (("small", 200), ("org/large", 200), ("hosted", 400)):
            response = await http.post("/tokenize", json={"model": name, "prompt": "a"})
            assert response.status_code == status, name
