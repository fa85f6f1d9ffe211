"""ModelService over a real socket."""

from dataclasses import replace
from typing import Any

import grpc
import pytest

from chatrpc.v1 import chat_pb2, model_service_pb2
from service.rpc.model_servicer import MAX_DETOKENIZED
from tests.service.rpc.conftest import CARD, Running
from tests.service.rpc.details import refusal


async def test_a_model_is_listed_with_what_is_known_of_it(running: Running) -> None:
    response = await running.models.ListModels(model_service_pb2.ListModelsRequest())
    [model] = response.models
    assert model.id == "fake"
    assert list(model.aliases) == ["alias"]
    assert model.max_model_len == 1000
    assert model.create_time.seconds == CARD.created
    assert response.next_page_token == ""


async def test_pages(running: Running) -> None:
    for name in ("b", "c", "d"):
        card = replace(CARD, id=name, aliases=())
        await running.lifecycle.serve(replace(running.model, card=card))
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


async def test_a_token_of_no_page_is_refused(running: Running) -> None:
    request = model_service_pb2.ListModelsRequest(page_token="nonsense")
    assert (await refusal(running.models.ListModels(request))).fields == ["page_token"]


async def test_a_model_is_found_by_id_and_alias(running: Running) -> None:
    for name in ("fake", "alias"):
        response = await running.models.GetModel(model_service_pb2.GetModelRequest(id=name))
        assert response.model.id == "fake"


async def test_an_unknown_model_is_not_found(running: Running) -> None:
    refused = await refusal(running.models.GetModel(model_service_pb2.GetModelRequest(id="x")))
    assert refused.code == grpc.StatusCode.NOT_FOUND
    assert (await refusal(running.models.GetModel(model_service_pb2.GetModelRequest()))).fields == [
        "id"
    ]


async def test_text_to_tokens_and_back(running: Running) -> None:
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


async def test_a_conversation_to_the_tokens_of_its_prompt(running: Running) -> None:
    message = chat_pb2.ChatMessage(
        role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text="x")]
    )
    conversation = model_service_pb2.Conversation(messages=[message])
    tokens = await running.models.Tokenize(
        model_service_pb2.TokenizeRequest(model="fake", conversation=conversation)
    )
    assert bytes(tokens.token_ids) == b"<user>x<assistant>"


async def test_what_cannot_be_tokenized_is_named(running: Running) -> None:
    no_messages = model_service_pb2.TokenizeRequest(
        model="fake", conversation=model_service_pb2.Conversation()
    )
    assert (await refusal(running.models.Tokenize(no_messages))).fields == ["conversation.messages"]
    no_input = model_service_pb2.TokenizeRequest(model="fake")
    assert (await refusal(running.models.Tokenize(no_input))).fields == ["input"]
    no_token = model_service_pb2.DetokenizeRequest(model="fake", token_ids=[1, 999])
    assert (await refusal(running.models.Detokenize(no_token))).fields == ["token_ids[1]"]


async def test_what_is_too_much_to_detokenize_is_named(running: Running) -> None:
    many = model_service_pb2.DetokenizeRequest(model="fake", token_ids=[1] * (MAX_DETOKENIZED + 1))
    assert (await refusal(running.models.Detokenize(many))).fields == ["token_ids"]


async def test_tokens_are_told_by_their_bytes_where_asked(running: Running) -> None:
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
async def test_no_option_of_a_prompt_is_ignored(
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
