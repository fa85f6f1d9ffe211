"""Stored responses with the real OpenAI client: continued, retrieved, listed and deleted."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseItemList

from chatrpc.v1 import chat_pb2
from chatrpc_process.access.secret import digest_of
from tests.fakes.chat_service import MODEL, Admit, Delta, FakeService, Finish, Hold
from tests.fakes.wait import until
from tests.support.gateway import serving, started

KEYS = {"ann": "sk-chatrpc-of-ann", "bob": "sk-chatrpc-of-bob"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def ai(service: FakeService, path: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    async with serving(upstream=service.target, response_store=path) as url, client(url) as ai:
        yield ai


def client(url: str, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def texts(service: FakeService) -> list[str]:
    """Return the texts of the messages of the last call."""
    messages = service.calls[-1].params.messages
    return ["".join(part.text for part in message.content) for message in messages]


async def test_response_continues_the_previous_one(
    ai: openai.AsyncOpenAI, service: FakeService
) -> None:
    first = await ai.responses.create(model=MODEL, input="One", instructions="Be brief.")
    assert first.to_dict()["store"] is True
    second = await ai.responses.create(
        model=MODEL, input="Two", previous_response_id=first.id, instructions="Be long."
    )
    assert second.previous_response_id == first.id
    assert texts(service) == ["Be long.", "One", "Hello world", "Two"]
    async with ai.responses.stream(
        model=MODEL, input="Three", previous_response_id=second.id
    ) as stream:
        third = await stream.get_final_response()
    assert texts(service) == ["One", "Hello world", "Two", "Hello world", "Three"]
    counted = await ai.responses.input_tokens.count(
        model=MODEL, input="Four", previous_response_id=third.id
    )
    assert counted.input_tokens > 0
    assert len(service.calls[-1].params.conversation.messages) == 7
    await ai.responses.create(model=MODEL, previous_response_id=first.id)
    assert texts(service) == ["One", "Hello world"]


async def test_tool_result_continues_the_call(ai: openai.AsyncOpenAI, service: FakeService) -> None:
    function = chat_pb2.FunctionCall(name="f", arguments_json="{}")
    call = chat_pb2.ToolCall(id="call_1", function=function)
    delta = chat_pb2.Delta(reasoning_content="Hm.")
    service.script = [
        Admit(),
        Delta(delta=delta),
        Delta(delta=chat_pb2.Delta(tool_calls=[call])),
        Finish(chat_pb2.FINISH_REASON_TOOL_CALLS),
    ]
    tools: Any = [{"type": "function", "name": "f", "parameters": None, "strict": False}]
    first = await ai.responses.create(model=MODEL, input="Hi", tools=tools)
    await ai.responses.create(
        model=MODEL,
        input=[{"type": "function_call_output", "call_id": "call_1", "output": "1"}],
        previous_response_id=first.id,
        tools=tools,
    )
    _, turn, result = service.calls[-1].params.messages
    assert (turn.reasoning_content, turn.tool_calls[0].id) == ("Hm.", "call_1")
    assert result.tool_call_id == "call_1"


async def test_reference_is_replaced_by_its_item(
    ai: openai.AsyncOpenAI, service: FakeService
) -> None:
    first = await ai.responses.create(model=MODEL, input="One")
    reference: Any = {"type": "item_reference", "id": first.output[0].id}
    await ai.responses.create(
        model=MODEL, input=[reference, {"role": "user", "content": "Two"}], store=False
    )
    assert texts(service) == ["Hello world", "Two"]
    with pytest.raises(openai.BadRequestError) as caught:
        await ai.responses.create(model=MODEL, input=[{"id": "msg_x"}])
    assert (caught.value.param, caught.value.code) == ("input[0].id", "item_not_found")


async def test_stored_conversation_counts_as_a_body_in_progress(
    service: FakeService, path: Path
) -> None:
    async with started(upstream=service.target, response_store=path) as (server, url):
        app: Any = server.config.app
        async with client(url) as ai:
            first = await ai.responses.create(model=MODEL, input="x" * 100_000)
            service.script = [Admit(), Hold()]
            second = ai.responses.create(model=MODEL, input="Two", previous_response_id=first.id)
            waiting = asyncio.ensure_future(second)
            await until(lambda: len(service.calls) == 2)
            assert app.state.bodies.num_bytes > 100_000
            waiting.cancel()
            await until(lambda: app.state.bodies.num_bytes == 0)


async def test_response_is_retrieved_and_deleted(ai: openai.AsyncOpenAI) -> None:
    created = await ai.responses.create(model=MODEL, input="One", metadata={"a": "b"})
    raw = await ai.responses.with_raw_response.retrieve(created.id)
    assert Response.model_validate_json(raw.text) == created
    await ai.responses.delete(created.id)
    with pytest.raises(openai.NotFoundError):
        await ai.responses.retrieve(created.id)
    with pytest.raises(openai.NotFoundError):
        await ai.responses.delete(created.id)
    with pytest.raises(openai.BadRequestError) as caught:
        await ai.responses.create(model=MODEL, input="Two", previous_response_id=created.id)
    assert caught.value.param == "previous_response_id"
    assert caught.value.code == "previous_response_not_found"


async def test_input_items_are_listed_in_pages(ai: openai.AsyncOpenAI) -> None:
    items: list[Any] = [{"role": "user", "content": str(i)} for i in range(5)]
    items.append({"role": "assistant", "content": "Yes."})
    created = await ai.responses.create(model=MODEL, input=items)
    raw = await ai.responses.input_items.with_raw_response.list(created.id)
    page = ResponseItemList.model_validate_json(raw.text)
    assert len(page.data) == 6
    assert not page.has_more
    assert page.data[0].type == "message"
    ascending = [
        item async for item in ai.responses.input_items.list(created.id, order="asc", limit=2)
    ]
    assert [item.id for item in ascending] == [item.id for item in reversed(page.data)]
    for fields in ({"limit": 0}, {"limit": 101}, {"after": "x"}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError) as caught:
            await ai.responses.input_items.list(created.id, **fields)
        assert caught.value.param == next(iter(fields))


async def test_unstored_response_is_not_found(ai: openai.AsyncOpenAI) -> None:
    created = await ai.responses.create(model=MODEL, input="One", store=False)
    assert created.to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError):
        await ai.responses.retrieve(created.id)


async def test_stream_of_a_stored_response_is_rejected(ai: openai.AsyncOpenAI) -> None:
    created = await ai.responses.create(model=MODEL, input="One")
    with pytest.raises(openai.BadRequestError) as caught:
        await ai.responses.retrieve(created.id, stream=True)
    assert caught.value.param == "stream"


async def test_response_of_another_key_is_not_found(
    service: FakeService, path: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(
        "".join(
            f'[[key]]\nname = "{name}"\nsha256 = "{digest_of(key)}"\n' for name, key in KEYS.items()
        )
    )
    async with (
        serving(upstream=service.target, response_store=path, api_keys=keys) as url,
        client(url, KEYS["ann"]) as ann,
        client(url, KEYS["bob"]) as bob,
    ):
        created = await ann.responses.create(model=MODEL, input="One")
        for attempt in (
            bob.responses.retrieve(created.id),
            bob.responses.delete(created.id),
            bob.responses.input_items.list(created.id),
        ):
            with pytest.raises(openai.NotFoundError):
                await attempt
        with pytest.raises(openai.BadRequestError, match="not found"):
            await bob.responses.create(model=MODEL, input="Two", previous_response_id=created.id)
        assert (await ann.responses.retrieve(created.id)).id == created.id


async def test_key_of_the_service_finds_only_its_own_responses(
    service: FakeService, path: Path
) -> None:
    """The gateway has no file of keys, and forwards those of clients."""
    async with serving(upstream=service.target, response_store=path) as url:
        async with client(url, KEYS["ann"]) as ann:
            created = await ann.responses.create(model=MODEL, input="One")
            assert (await ann.responses.retrieve(created.id)).id == created.id
        for key in (KEYS["bob"], "none"):
            async with client(url, key) as other:
                with pytest.raises(openai.NotFoundError):
                    await other.responses.retrieve(created.id)


async def test_locked_store_does_not_stop_responses(ai: openai.AsyncOpenAI, path: Path) -> None:
    first = await ai.responses.create(model=MODEL, input="One")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    second = await ai.responses.create(model=MODEL, input="Two", previous_response_id=first.id)
    assert second.output_text == "Hello world"
    assert second.to_dict()["store"] is False
    other.execute("ROLLBACK")
    other.close()


async def test_damaged_store_does_not_stop_responses(ai: openai.AsyncOpenAI, path: Path) -> None:
    first = await ai.responses.create(model=MODEL, input="One")
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("DROP TABLE items")
    database.execute("DROP TABLE responses")
    database.close()
    async with ai.responses.stream(model=MODEL, input="Two") as stream:
        second = await stream.get_final_response()
    assert second.output_text == "Hello world"
    assert second.to_dict()["store"] is False
    for attempt in (
        ai.responses.retrieve(first.id),
        ai.responses.create(model=MODEL, input="Two", previous_response_id=first.id),
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            await attempt
        assert caught.value.status_code == 503
    counted = await ai.responses.create(model=MODEL, input="Two", store=False)
    assert counted.output_text == "Hello world"


async def test_gateway_without_a_store_rejects_what_needs_one(url: str) -> None:
    reference: Any = {"type": "item_reference", "id": "msg_1"}
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("store", {"input": "Hi", "store": True}),
        ("previous_response_id", {"input": "Hi", "previous_response_id": "resp_1"}),
        ("input[0]", {"input": [reference]}),
    ]
    async with client(url) as ai:
        for param, body in bodies:
            with pytest.raises(openai.BadRequestError, match="store of responses") as caught:
                await ai.responses.create(model=MODEL, **body)
            assert caught.value.param == param
        for attempt in (
            ai.responses.retrieve("resp_1"),
            ai.responses.delete("resp_1"),
            ai.responses.input_items.list("resp_1"),
        ):
            with pytest.raises(openai.NotFoundError, match="store of responses"):
                await attempt
        created = await ai.responses.create(model=MODEL, input="Hi")
    assert created.to_dict()["store"] is False
