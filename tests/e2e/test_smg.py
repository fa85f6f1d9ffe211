"""The router smg, of another project, in front of the service with vLLM's protocol."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fakes.wait import FAILSAFE_S, block_until
from tests.support.service_process import Process
from tests.support.tiny_model import save_model

pytestmark = pytest.mark.slow

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_served(client: openai.OpenAI) -> bool:
    """Return True if smg has connected to the service and has its tokenizer."""
    try:
        client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)
    except (openai.APIConnectionError, openai.APIStatusError):
        return False
    return True


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Process]:
    model = save_model(tmp_path / "tiny", vocab_size=300)
    options = ("--model", str(model), "--dtype", "float32", "--serve-vllm-protocol")
    with closing(Process(*options)) as process:
        yield process


@pytest.fixture
def client(service: Process) -> Iterator[openai.OpenAI]:
    port = service.until("listening")["port"]
    service.until("ready")
    http, metrics = free_port(), free_port()
    command = [str(Path(sys.executable).parent / "smg"), "launch", "--host", "127.0.0.1"]
    command += ["--port", str(http), "--prometheus-port", str(metrics)]
    command += ["--worker-urls", f"grpc://127.0.0.1:{port}"]
    smg = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with ExitStack() as stack:
        stack.callback(smg.wait, FAILSAFE_S)
        stack.callback(smg.kill)
        url = f"http://127.0.0.1:{http}/v1"
        client = stack.enter_context(openai.OpenAI(base_url=url, api_key="none", max_retries=0))
        block_until(lambda: is_served(client))
        yield client


def test_router_completes_chats_and_aborts_them(service: Process, client: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "model": "tiny",
        "messages": MESSAGES,
        "extra_body": {"ignore_eos": True},
    }
    whole = client.chat.completions.create(**options, max_tokens=12, logprobs=True)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    assert whole.choices[0].finish_reason == "length"
    assert whole.choices[0].logprobs is not None
    constrained = client.chat.completions.create(
        **{**options, "extra_body": {"regex": "[ab]{5}"}}, max_tokens=12
    )
    content = constrained.choices[0].message.content or ""
    assert len(content) == 5
    assert set(content) <= {"a", "b"}
    stream = client.chat.completions.create(**options, max_tokens=4000, stream=True)
    assert next(iter(stream))
    stream.close()
    aborted = "/vllm.grpc.engine.VllmEngine/Abort"
    while service.until("request_finished")["method"] != aborted:
        pass
