"""`python -m service` as a process whose log is read line by line."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from chatrpc.v1 import chat_pb2, chat_service_pb2
from tests.fakes.wait import FAILSAFE_S, killed_after_failsafe


class Process:
    """A running `python -m service`, its log read line by line."""

    def __init__(self, *arguments: str, module: str = "service") -> None:
        command = [sys.executable, "-m", module, "--port", "0", "--log-format", "json"]
        self.popen = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []

    def until(self, event: str) -> dict[str, Any]:
        """Return the next log line of this event."""
        for line in self._read():
            if line.startswith("{") and json.loads(line)["event"] == event:
                found: dict[str, Any] = json.loads(line)
                return found
        raise AssertionError(f"no {event!r} in the log: {self.lines}")

    def wait(self) -> int:
        """Read the log to its end and return the exit code."""
        for _ in self._read():
            pass
        return self.popen.wait(FAILSAFE_S)

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()
        if self.popen.stderr is not None:
            self.popen.stderr.close()

    def _read(self) -> Iterator[str]:
        assert self.popen.stderr is not None
        with killed_after_failsafe(self.popen):
            for line in self.popen.stderr:
                self.lines.append(line)
                yield line

    @property
    def log(self) -> str:
        return "".join(self.lines)


def request(num_tokens: int) -> chat_service_pb2.StreamChatCompletionRequest:
    message = chat_pb2.ChatMessage(
        role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text="hi")]
    )
    params = chat_pb2.ChatCompletionParams(
        model="tiny",
        messages=[message],
        sampling=chat_pb2.SamplingParams(max_completion_tokens=num_tokens, ignore_eos=True),
    )
    return chat_service_pb2.StreamChatCompletionRequest(params=params)
