"""The prefix cache on disk, across real processes that end and start again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from chatrpc.v1 import chat_pb2, completion_pb2, completion_service_pb2, completion_service_pb2_grpc
from tests.fakes.wait import block_until
from tests.support.service_process import Process
from tests.support.tiny_model import save_model

pytestmark = pytest.mark.slow

SYSTEM_PROMPT = [i * i % 290 for i in range(1000)]  # 31 full blocks of 32 tokens
NUM_BLOCKS = 31


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny", vocab_size=300)


class Service:
    """A service with the directory, and a client of it."""

    def __init__(self, model: Path, directory: Path, *options: str) -> None:
        self.directory = directory
        arguments = ("--model", str(model), "--prefix-cache-dir", str(directory))
        self.process = Process(*arguments, "--dtype", "float32", *options)
        port = self._event("listening")["port"]
        self._event("ready")
        self._event("prefix_cache_disk_opened")
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._stub: Any = completion_service_pb2_grpc.CompletionServiceStub(self._channel)

    def _event(self, name: str) -> dict[str, Any]:
        """Return the first log line of an event. The events may come in any order."""
        for line in self.process.lines:
            if line.startswith("{") and json.loads(line)["event"] == name:
                found: dict[str, Any] = json.loads(line)
                return found
        return self.process.until(name)

    def complete(self, *user: int) -> tuple[list[int], int]:
        """Return the tokens after the system prompt and `user`, and the number of cached tokens."""
        prompt = completion_pb2.TokenIds(ids=[*SYSTEM_PROMPT, *user])
        sampling = chat_pb2.SamplingParams(
            max_completion_tokens=8, temperature=0.0, ignore_eos=True
        )
        params = completion_pb2.CompletionParams(
            model="tiny",
            prompts=[completion_pb2.CompletionPrompt(token_ids=prompt)],
            sampling=sampling,
            return_token_ids=True,
        )
        request = completion_service_pb2.CreateCompletionRequest(params=params)
        completion = self._stub.CreateCompletion(request).completion
        return list(completion.choices[0].token_ids), completion.usage.cached_prompt_tokens

    def wait_for_blocks(self) -> None:
        """Wait until the blocks of the system prompt are stored."""
        blocks = self.directory / "blocks"
        block_until(lambda: len(list(blocks.glob("*.kv"))) == NUM_BLOCKS)

    def end(self) -> None:
        self._channel.close()
        self.process.popen.terminate()
        assert self.process.wait() == 0

    def close(self) -> None:
        self._channel.close()
        self.process.close()


@pytest.fixture
def stored(model: Path, tmp_path: Path) -> Iterator[tuple[Path, list[int]]]:
    """A directory with the blocks of the system prompt, and the tokens after it and 1, 2, 3."""
    service = Service(model, tmp_path)
    try:
        token_ids, num_cached = service.complete(1, 2, 3)
        assert num_cached == 0
        service.complete(4, 5, 6)
        service.wait_for_blocks()
        yield tmp_path, token_ids
    finally:
        service.close()


def test_prefix_is_loaded_after_a_restart(model: Path, stored: tuple[Path, list[int]]) -> None:
    directory, token_ids = stored
    service = Service(model, directory)
    try:
        assert service.complete(1, 2, 3) == (token_ids, 32 * NUM_BLOCKS)
        service.end()
    finally:
        service.close()


def test_prefix_is_not_loaded_with_another_block_size(
    model: Path, stored: tuple[Path, list[int]]
) -> None:
    directory, token_ids = stored
    service = Service(model, directory, "--block-size", "16")
    try:
        assert service.complete(1, 2, 3) == (token_ids, 0)
    finally:
        service.close()


def test_process_that_is_killed_leaves_a_directory_that_can_be_used(
    model: Path, stored: tuple[Path, list[int]]
) -> None:
    directory, token_ids = stored
    for _ in range(2):
        service = Service(model, directory)
        try:
            assert service.complete(1, 2, 3) == (token_ids, 32 * NUM_BLOCKS)
            service.process.popen.kill()
        finally:
            service.close()


def test_running_processes_share_a_directory(model: Path, stored: tuple[Path, list[int]]) -> None:
    """The process of `stored` still runs. The others find its blocks."""
    directory, token_ids = stored
    first, second = (Service(model, directory) for _ in range(2))
    try:
        assert first.complete(1, 2, 3) == (token_ids, 32 * NUM_BLOCKS)
        assert second.complete(1, 2, 3) == (token_ids, 32 * NUM_BLOCKS)
    finally:
        first.close()
        second.close()
