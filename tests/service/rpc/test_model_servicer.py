"""ModelService over a real socket."""

import threading
from dataclasses import replace
from typing import Any

import grpc
import pytest

from chatrpc.v1 import chat_pb2, chat_service_pb2, model_service_pb2
from service.generation.local_backend import locally_served
from service.metrics import Metrics
from service.rpc.model_servicer import MAX_TEXT_BYTES
from tests.fakes.tokenizer import ByteTokenizer
from tests.fakes.wait import until
from tests.support.grpc_server import CARD, Running, served
from tests.support.rpc_errors import rpc_error


class UnusedTokenizer(ByteTokenizer):
    """A tokenizer that raises an error if it has to encode."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        raise AssertionError


class SlowTokenizer(ByteTokenizer):
    """A tokenizer that waits for `go_on` before it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_begun = 0
        self.go_on = threading.Event()

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        self.num_begun += 1
        self.go_on.wait(60)
        return super().encode(text, add_special_tokens=add_special_tokens)


async def test_listed_model_has_the_fields_of_its_card(running: Running) -> None:
    response = await running.models.ListModels(model_service_pb2.ListModelsRequest())
    [model] = response.models
    assert model.id == "fake"
    assert list(model.aliases) == ["alias"]
    assert model.max_model_len == 1000
    assert model.create_time.seconds == CARD.created
    assert response.next_page_token == ""


async def test_models_are_listed_in_pages(running: Running) -> None:
    for name in ("b", "c", "d"):
        card = replace(CARD, id=name, aliases=())
        await running.lifecycle.serve(locally_served(replace(running.model, card=card)))
    seen, token = [], ""
    while True:
        page = await running.models.ListModels(
            model_service_pb2.ListModelsRequest(page_size=3, page_token=token)
        )
        seen.append([model.id for model in page.models])
        token = page.next_page_token
        if not token:
            break
    assert seen == [["fake", "b", "c"], ["d"]]


async def test_invalid_page_token_is_rejected(running: Running) -> None:
    request = model_service_pb2.ListModelsRequest(page_token="nonsense")
    assert (await rpc_error(running.models.ListModels(request))).fields == ["page_token"]


async def test_model_is_found_by_id_and_alias(running: Running) -> None:
    for name in ("fake", "alias"):
        response = await running.models.GetModel(model_service_pb2.GetModelRequest(id=name))
        assert response.model.id == "fake"


async def test_unknown_model_is_not_found(running: Running) -> None:
    rejected = await rpc_error(running.models.GetModel(model_service_pb2.GetModelRequest(id="x")))
    assert rejected.code == grpc.StatusCode.NOT_FOUND
    assert (
        await rpc_error(running.models.GetModel(model_service_pb2.GetModelRequest()))
    ).fields == ["id"]


async def test_text_is_tokenized_and_detokenized(running: Running) -> None:
    tokens = await running.models.Tokenize(
        model_service_pb2.TokenizeRequest(model="fake", text="hé")
    )
    assert list(tokens.token_ids) == [*"hé".encode(), 256]
    assert tokens.max_model_len == 1000
    plain = await running.models.Tokenize(
        model_service_pb2.TokenizeRequest(model="fake", text="hé", add_special_tokens=False)
    )
    text = await running.models.Detokenize(
        model_service_pb2.DetokenizeRequest(model="fake", token_ids=plain.token_ids)
    )
    assert text.text == "hé"


async def test_conversation_is_tokenized_as_its_prompt(running: Running) -> None:
    message = chat_pb2.ChatMessage(
        role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text="x")]
    )
    conversation = model_service_pb2.Conversation(messages=[message])
    tokens = await running.models.Tokenize(
        model_service_pb2.TokenizeRequest(model="fake", conversation=conversation)
    )
    assert bytes(tokens.token_ids) == b"<user>x<assistant>"


async def test_tools_of_a_conversation_are_part_of_its_prompt(running: Running) -> None:
    message = chat_pb2.ChatMessage(
        role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text="x")]
    )
    tool = chat_pb2.Tool(function=chat_pb2.FunctionDefinition(name="weather"))
    conversation = model_service_pb2.Conversation(messages=[message], tools=[tool])
    tokens = await running.models.Tokenize(
        model_service_pb2.TokenizeRequest(model="fake", conversation=conversation)
    )
    params = chat_pb2.ChatCompletionParams(
        model="fake", messages=[message], tools=[tool], return_token_ids=True
    )
    running.engine.answer("ok")
    created = await running.chat.CreateChatCompletion(
        chat_service_pb2.CreateChatCompletionRequest(params=params)
    )
    assert b"weather" in bytes(tokens.token_ids)
    assert tokens.token_ids == created.completion.prompt_token_ids


async def test_invalid_tool_of_a_conversation_is_rejected(running: Running) -> None:
    message = chat_pb2.ChatMessage(
        role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text="x")]
    )
    tool = chat_pb2.Tool(function=chat_pb2.FunctionDefinition(name="a b"))
    conversation = model_service_pb2.Conversation(messages=[message], tools=[tool])
    request = model_service_pb2.TokenizeRequest(model="fake", conversation=conversation)
    error = await rpc_error(running.models.Tokenize(request))
    assert error.fields == ["conversation.tools[0].function.name"]


async def test_invalid_input_is_rejected_with_its_field(running: Running) -> None:
    no_messages = model_service_pb2.TokenizeRequest(
        model="fake", conversation=model_service_pb2.Conversation()
    )
    assert (await rpc_error(running.models.Tokenize(no_messages))).fields == [
        "conversation.messages"
    ]
    no_input = model_service_pb2.TokenizeRequest(model="fake")
    assert (await rpc_error(running.models.Tokenize(no_input))).fields == ["input"]
    no_token = model_service_pb2.DetokenizeRequest(model="fake", token_ids=[1, 999])
    assert (await rpc_error(running.models.Detokenize(no_token))).fields == ["token_ids[1]"]


async def test_long_text_is_rejected_before_it_is_tokenized(running: Running) -> None:
    long = model_service_pb2.TokenizeRequest(model="fake", text="x" * MAX_TEXT_BYTES)
    rejected = await rpc_error(running.models.Tokenize(long))
    assert (rejected.reason, rejected.fields) == ("CONTEXT_LENGTH_EXCEEDED", ["text"])
    card = replace(CARD, id="wide", aliases=(), max_model_len=1 << 30)
    await running.lifecycle.serve(
        locally_served(replace(running.model, card=card, tokenizer=UnusedTokenizer()))
    )
    for text in ("x" * (MAX_TEXT_BYTES + 1), "é" * (MAX_TEXT_BYTES // 2 + 1)):
        wide = model_service_pb2.TokenizeRequest(model="wide", text=text)
        rejected = await rpc_error(running.models.Tokenize(wide))
        assert (rejected.reason, rejected.fields) == ("INVALID_FIELD", ["text"])


async def test_text_of_a_cancelled_call_is_not_tokenized() -> None:
    metrics, tokenizer = Metrics(), SlowTokenizer()
    method = "chatrpc.v1.ModelService", "Tokenize"
    started, left = metrics.started.labels(*method), metrics.handled.labels(*method, "CANCELLED")
    request = model_service_pb2.TokenizeRequest(model="fake", text="x")
    async with served(metrics=metrics) as running:
        await running.lifecycle.serve(locally_served(replace(running.model, tokenizer=tokenizer)))
        calls: list[Any] = [running.models.Tokenize(request) for _ in range(20)]
        await until(lambda: started._value.get() == 20 and tokenizer.num_begun > 0)
        for call in calls:
            call.cancel()
        await until(lambda: left._value.get() == 20)
        tokenizer.go_on.set()
        assert (await running.models.Tokenize(request)).token_ids
    assert tokenizer.num_begun <= 3  # one on each of two threads, and the last call


async def test_too_many_tokens_to_detokenize_are_rejected(running: Running) -> None:
    many = model_service_pb2.DetokenizeRequest(model="fake", token_ids=[1] * 100_001)
    assert (await rpc_error(running.models.Detokenize(many))).fields == ["token_ids"]


async def test_token_bytes_are_returned_if_requested(running: Running) -> None:
    request = model_service_pb2.TokenizeRequest(model="fake", text="é", add_special_tokens=False)
    assert list((await running.models.Tokenize(request)).token_bytes) == []
    request.return_token_bytes = True
    assert list((await running.models.Tokenize(request)).token_bytes) == [b"\xc3", b"\xa9"]


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        ({"continue_final_message": True}, b"<user>x"),
        ({"truncate_prompt_tokens": 3}, b"nt>"),
        ({"add_generation_prompt": False}, b"<user>x"),
    ],
)
async def test_prompt_options_change_the_tokenized_prompt(
    running: Running, options: dict[str, Any], prompt: bytes
) -> None:
    conversation = model_service_pb2.Conversation(
        messages=[
            chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text="x")])
        ],
        prompt=chat_pb2.PromptOptions(**options),
    )
    request = model_service_pb2.TokenizeRequest(model="fake", conversation=conversation)
    assert bytes((await running.models.Tokenize(request)).token_ids) == prompt
