"""Tokenizing at an upstream, through the servicer."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from chatrpc.v1 import chat_pb2, model_service_pb2
from tests.fakes import openai_upstream as fake
from tests.fakes.wait import until
from tests.service.upstream.serving import serving
from tests.support.grpc_server import Running, served
from tests.support.rpc_errors import rpc_error


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with served() as running:
        yield running


def tokenized(**fields: Any) -> model_service_pb2.TokenizeRequest:
    return model_service_pb2.TokenizeRequest(model=fake.MODEL, **fields)


async def test_texts_and_conversations_are_tokenized(server: Running) -> None:
    async with fake.running() as upstream, serving(upstream.url) as remote:
        body = {"tokens": [1, 2, 3], "count": 3, "max_model_len": 9}
        upstream.handlers["/tokenize"] = fake.replies(fake.response(200, body))
        await server.lifecycle.serve(remote.model)
        response = await server.models.Tokenize(tokenized(text="hi", add_special_tokens=False))
        assert list(response.token_ids) == [1, 2, 3]
        message = chat_pb2.ChatMessage(
            role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text="hi")]
        )
        prompt = chat_pb2.PromptOptions(truncate_prompt_tokens=2)
        tool = chat_pb2.Tool(function=chat_pb2.FunctionDefinition(name="weather"))
        conversation = model_service_pb2.Conversation(
            messages=[message], prompt=prompt, tools=[tool]
        )
        response = await server.models.Tokenize(tokenized(conversation=conversation))
        assert list(response.token_ids) == [2, 3]
        assert upstream.generations == [
            {"model": fake.MODEL, "prompt": "hi", "add_special_tokens": False},
            {
                "model": fake.MODEL,
                "messages": [{"role": "user", "content": "hi"}],
                "add_generation_prompt": True,
                "continue_final_message": False,
                "tools": [{"type": "function", "function": {"name": "weather"}}],
            },
        ]


async def test_token_ids_are_detokenized(server: Running) -> None:
    async with fake.running() as upstream, serving(upstream.url) as remote:
        upstream.handlers["/detokenize"] = fake.replies(fake.response(200, {"prompt": "hi"}))
        await server.lifecycle.serve(remote.model)
        request = model_service_pb2.DetokenizeRequest(model=fake.MODEL, token_ids=[1, 2])
        assert (await server.models.Detokenize(request)).text == "hi"
        assert upstream.generations == [{"model": fake.MODEL, "tokens": [1, 2]}]


@pytest.mark.parametrize(
    ("sent", "fields", "code", "reason"),
    [
        (b"", {"return_token_bytes": True}, "INVALID_ARGUMENT", "UNSUPPORTED_FIELD"),
        (fake.response(404, b""), {}, "UNIMPLEMENTED", "UNSUPPORTED_METHOD"),
        (fake.response(200, {"tokens": ["a"]}), {}, "INTERNAL", "UPSTREAM_INVALID_RESPONSE"),
        (fake.response(500, b""), {}, "UNAVAILABLE", "UPSTREAM_DOWN"),
    ],
)
async def test_failure_has_its_status(
    server: Running, sent: bytes, fields: dict[str, Any], code: str, reason: str
) -> None:
    async with fake.running() as upstream, serving(upstream.url) as remote:
        upstream.handlers["/tokenize"] = fake.replies(sent)
        await server.lifecycle.serve(remote.model)
        error = await rpc_error(server.models.Tokenize(tokenized(text="hi", **fields)))
        assert (error.code, error.reason) == (grpc.StatusCode[code], reason)


async def test_call_without_a_deadline_ends_after_the_request_timeout() -> None:
    async def silent(_: fake.Received, __: fake.Send) -> None:
        await asyncio.Event().wait()

    async with (
        served(request_timeout_s=0.01) as server,
        fake.running() as upstream,
        serving(upstream.url) as remote,
    ):
        upstream.handlers |= {"/tokenize": silent, "/detokenize": silent}
        await server.lifecycle.serve(remote.model)
        request = model_service_pb2.DetokenizeRequest(model=fake.MODEL, token_ids=[1])
        for call in (
            server.models.Tokenize(tokenized(text="hi")),
            server.models.Detokenize(request),
        ):
            error = await rpc_error(call)
            assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: upstream.num_running == 0)


async def test_other_upstreams_do_not_tokenize(server: Running) -> None:
    async with fake.running() as upstream, serving(upstream.url, upstream_dialect="openai") as it:
        await server.lifecycle.serve(it.model)
        error = await rpc_error(server.models.Tokenize(tokenized(text="hi")))
        assert error.code is grpc.StatusCode.UNIMPLEMENTED
