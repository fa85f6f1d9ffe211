"""`chatrpc serve` with several models: real processes, tiny models with random weights."""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.wait import FAILSAFE_S, block_until, killed_after_failsafe
from tests.support.make_serve import free_port
from tests.support.tiny_model import save_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]

CHAT = "/v1/chat/completions"


class Serving:
    """A running `chatrpc serve` with the models `a` and `b`, of which one fits the budget."""

    def __init__(self, folder: Path) -> None:
        models = [save_model(folder / name, 300) for name in "ab"]
        self.port = free_port()
        options = [text for model in models for text in ("--model", str(model))]
        options += ["--models-memory", "600MiB", "--http-port", str(self.port)]
        log = folder / "stderr.log"
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "chatrpc_cli", "serve", *options],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
                env={**os.environ, "CHATRPC_SERVICE_DTYPE": "float32"},
            )
        assert self.process.stdout
        with killed_after_failsafe(self.process):
            while "curl" not in (line := self.process.stdout.readline()):
                assert line, log.read_text()

    def request(self, method: str, path: str, body: Any = None) -> Any:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port)) as connection:
            headers = {"content-type": "application/json"}
            connection.request(method, path, body and json.dumps(body), headers)
            return json.load(connection.getresponse())

    def states(self) -> dict[str, str]:
        listed = self.request("GET", "/v1/models")["data"]
        return {model["id"]: model["status"]["value"] for model in listed}

    def complete(self, model: str) -> Any:
        messages = [{"role": "user", "content": "Hi"}]
        return self.request("POST", CHAT, {"model": model, "messages": messages, "max_tokens": 3})

    def descendants(self) -> list[int]:
        def below(pid: int) -> Iterator[int]:
            for path in Path(f"/proc/{pid}/task").glob("*/children"):
                for child in map(int, path.read_text().split()):
                    yield child
                    yield from below(child)

        return list(below(self.process.pid))


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    serving = Serving(tmp_path)
    yield serving
    serving.process.kill()
    serving.process.communicate(timeout=FAILSAFE_S)


def has_ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"  # it waits for its parent to read its exit code


def test_models_replace_each_other_and_end_with_the_command(serving: Serving) -> None:
    assert serving.states() == {"a": "unloaded", "b": "unloaded"}
    first = serving.complete("a")
    assert (first["model"], first["usage"]["completion_tokens"]) == ("a", 3)
    assert serving.states() == {"a": "loaded", "b": "unloaded"}
    assert serving.complete("b")["model"] == "b"
    assert serving.states() == {"a": "unloaded", "b": "loaded"}
    known = serving.request("GET", "/v1/models/a")
    assert (known["max_model_len"], known["quantization"]) == (4096, "float32")
    processes = serving.descendants()
    os.killpg(serving.process.pid, signal.SIGINT)
    assert serving.process.wait(FAILSAFE_S) == 0
    assert all(map(has_ended, processes))


def test_killed_command_leaves_no_processes(serving: Serving) -> None:
    serving.complete("a")
    processes = serving.descendants()
    assert len(processes) >= 2  # the gateway and a service
    serving.process.kill()
    block_until(lambda: all(map(has_ended, processes)))
