"""The servicers with a backend that has no engine, no tokenizer and no token ids."""

from dataclasses import replace

import grpc
import pytest

from chatrpc.v1 import (
    chat_pb2,
    chat_service_pb2,
    completion_pb2,
    completion_service_pb2,
    model_service_pb2,
)
from service.domain.backend import ServedModel
from tests.fakes.remote_backend import RemoteBackend
from tests.support.grpc_server import CARD, Running, params
from tests.support.rpc_errors import rpc_error


@pytest.fixture
async def remote(running: Running) -> Running:
    """Return a server with a model called `remote` in addition to `fake`."""
    card = replace(CARD, id="remote", aliases=())
    backend = RemoteBackend()
    await running.lifecycle.serve(ServedModel(card, backend, backend))
    return running


async def test_chat_is_served_without_an_engine(remote: Running) -> None:
    request = chat_service_pb2.CreateChatCompletionRequest(
        params=params(
            model="remote",
            logprobs=True,
            sampling=chat_pb2.SamplingParams(n=2, stop_token_ids=[1 << 20]),
        )
    )
    completion = (await remote.chat.CreateChatCompletion(request)).completion
    assert [choice.message.content[0].text for choice in completion.choices] == ["Hi!", "Hi!"]
    [logprob] = completion.choices[0].logprobs
    assert (logprob.token, logprob.logprob, logprob.token_id) == ("Hi", -0.5, 0)
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (0, 4)


async def test_streamed_chat_is_served_without_an_engine(remote: Running) -> None:
    request = chat_service_pb2.StreamChatCompletionRequest(params=params(model="remote"))
    chunks = [response.chunk async for response in remote.chat.StreamChatCompletion(request)]
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["Hi", "!"]
    assert chunks[-1].choices[0].finish_reason == chat_pb2.FINISH_REASON_STOP


async def test_text_completion_is_served_without_an_engine(remote: Running) -> None:
    request = completion_service_pb2.CreateCompletionRequest(
        params=completion_pb2.CompletionParams(
            model="remote", prompts=[completion_pb2.CompletionPrompt(text="Say hi")], logprobs=0
        )
    )
    completion = (await remote.completions.CreateCompletion(request)).completion
    assert [choice.text for choice in completion.choices] == ["Hi!"]


async def test_tokenize_without_a_tokenizer_is_unimplemented(remote: Running) -> None:
    tokenize = model_service_pb2.TokenizeRequest(model="remote", text="a")
    detokenize = model_service_pb2.DetokenizeRequest(model="remote", token_ids=[1])
    for method, call in (
        ("Tokenize", remote.models.Tokenize(tokenize)),
        ("Detokenize", remote.models.Detokenize(detokenize)),
    ):
        rejected = await rpc_error(call)
        assert (rejected.code, rejected.reason) == (
            grpc.StatusCode.UNIMPLEMENTED,
            "UNSUPPORTED_METHOD",
        )
        assert method in rejected.message
