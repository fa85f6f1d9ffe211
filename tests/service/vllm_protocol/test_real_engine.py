"""vLLM's protocol over this project's own engine. All parts are real."""

import asyncio
import hashlib
import io
import random
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2, vllm_engine_pb2_grpc

from chatrpc.v1 import chat_pb2, chat_service_pb2, chat_service_pb2_grpc
from service.config import ServiceSettings
from service.engine.async_engine import AsyncEngine
from service.engine.local import local_engine
from service.model import ModelLoader
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.server import Server
from service.rpc.serving.lifecycle import Lifecycle
from service.text.hf_tokenizer import load_tokenizer
from service.vllm_protocol.extension import VllmProtocol
from tests.fakes.wait import until
from tests.service.vllm_protocol.protocol_server import generate
from tests.support.tiny_model import save_model


@dataclass
class Stack:
    """A running service with the protocol, and the stubs of a client."""

    path: Path
    engine: AsyncEngine
    chat: Any
    protocol: Any

    def is_empty(self) -> bool:
        stats = self.engine.stats()
        is_free = stats.num_free_kv_blocks == stats.num_kv_blocks
        return stats.num_running + stats.num_waiting == 0 and is_free


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    path = save_model(tmp_path / "tiny", vocab_size=300)
    settings = ServiceSettings.load(["--model", str(path), "--dtype", "float32"])
    loader = ModelLoader(settings)
    engine = local_engine(settings.engine_settings)
    await engine.start(loader.load())
    lifecycle = Lifecycle(SERVICE_NAMES)
    server = Server(lifecycle, request_timeout_s=3600, extensions=[VllmProtocol(lifecycle)])
    port = await server.start("127.0.0.1", 0)
    await lifecycle.serve(loader.served(engine))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = vllm_engine_pb2_grpc.VllmEngineStub(channel)  # type: ignore[no-untyped-call]  # it has no types
        yield Stack(path, engine, chat_service_pb2_grpc.ChatServiceStub(channel), stub)
    await server.stop()
    await engine.stop()


def sampling(choose: random.Random) -> dict[str, Any]:
    """Return random sampling parameters, whose names are the same in both APIs."""
    return {
        "temperature": choose.choice([0.0, 0.7, 1.5]),
        "top_p": choose.choice([0.5, 1.0]),
        "top_k": choose.choice([0, 20]),
        "min_p": choose.choice([0.0, 0.125]),
        "repetition_penalty": choose.choice([1.0, 1.5]),
        "frequency_penalty": choose.choice([0.0, 0.5]),
        "presence_penalty": choose.choice([0.0, 0.5]),
        "logit_bias": choose.choice([{}, {7: 5.0}]),
        "seed": choose.randrange(1000),
        "min_tokens": choose.choice([0, 4]),
        "stop_token_ids": choose.choice([[], [5, 6, 7]]),
        "n": choose.choice([1, 3]),
    }


async def chat_tokens(stack: Stack, text: str, params: dict[str, Any]) -> tuple[list[int], Any]:
    """Return the prompt's token ids and the ids of each choice of a chat completion."""
    request = chat_pb2.ChatCompletionParams(
        model="tiny",
        messages=[
            chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text=text)])
        ],
        sampling=chat_pb2.SamplingParams(max_completion_tokens=12, **params),
        return_token_ids=True,
    )
    call = chat_service_pb2.CreateChatCompletionRequest(params=request)
    completion = (await stack.chat.CreateChatCompletion(call)).completion
    tokens = {choice.index: list(choice.token_ids) for choice in completion.choices}
    return list(completion.prompt_token_ids), tokens


async def test_tokens_equal_those_of_a_chat_completion(stack: Stack) -> None:
    choose = random.Random(11)
    for i in range(25):
        params = sampling(choose)
        text = "".join(choose.choices("abcdef ", k=choose.randrange(1, 40)))
        prompt, expected = await chat_tokens(stack, text, params)
        request = generate(tuple(prompt), stream=bool(i % 2), max_tokens=12, **params)
        tokens: dict[int, list[int]] = {}
        async for response in stack.protocol.Generate(request):
            if response.HasField("chunk"):
                tokens.setdefault(response.chunk.index, []).extend(response.chunk.token_ids)
            else:
                complete = response.complete
                assert tokens.setdefault(complete.index, list(complete.output_ids)) == list(
                    complete.output_ids
                )
        assert tokens == expected, (text, params)


async def test_abort_frees_the_blocks_of_running_and_waiting_requests(stack: Stack) -> None:
    ids = [f"r{i}" for i in range(40)]  # 32 run at once
    calls = [
        stack.protocol.Generate(generate(request_id=i, ignore_eos=True, max_tokens=4000))
        for i in ids
    ]
    await until(lambda: stack.engine.stats().num_waiting > 0)
    await stack.protocol.Abort(vllm_engine_pb2.AbortRequest(request_ids=ids))
    reasons = [[response.complete.finish_reason async for response in call] for call in calls]
    assert reasons == [["abort"]] * len(ids)
    await until(stack.is_empty)


async def test_abort_and_cancel_at_once_free_everything(stack: Stack) -> None:
    for i in range(20):
        request = generate(request_id="r", ignore_eos=True, max_tokens=4000, stream=True)
        call = stack.protocol.Generate(request)
        await call.read()
        abort = asyncio.ensure_future(
            stack.protocol.Abort(vllm_engine_pb2.AbortRequest(request_ids=["r"]))
        )
        if i % 2:
            await asyncio.sleep(0)
        call.cancel()
        await abort
        await until(stack.is_empty)


async def test_tokenizer_can_be_made_from_the_archive(stack: Stack, tmp_path: Path) -> None:
    chunks = [c async for c in stack.protocol.GetTokenizer(common_pb2.GetTokenizerRequest())]
    data = b"".join(chunk.data for chunk in chunks)
    assert chunks[-1].sha256 == hashlib.sha256(data).hexdigest()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(tmp_path / "received")
    text = "a tokenizer's text"
    received, original = load_tokenizer(tmp_path / "received"), load_tokenizer(stack.path)
    for adds_special in (True, False):
        expected = original.encode(text, add_special_tokens=adds_special)
        assert received.encode(text, add_special_tokens=adds_special) == expected
    assert received.template == original.template


async def test_model_info_is_that_of_the_checkpoint(stack: Stack) -> None:
    info = await stack.protocol.GetModelInfo(vllm_engine_pb2.GetModelInfoRequest())
    assert (info.served_model_name, info.model_type) == ("tiny", "llama")
    assert (info.max_context_length, info.vocab_size) == (4096, 300)
