import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from typer.testing import Result

from chatrpc.v1 import chat_pb2
from tests.chatrpc_cli.fake_service import FakeService

FAILSAFE_S = 60  # long enough for any machine; only a failing test waits this long
COMMAND = [sys.executable, "-m", "chatrpc_cli", "chat", "--target"]


def conversation(params: chat_pb2.ChatCompletionParams) -> list[tuple[str, str]]:
    return [(chat_pb2.Role.Name(m.role)[5:], m.content[0].text) for m in params.messages]


# One message


def test_only_the_response_is_on_stdout(run: Callable[..., Result]) -> None:
    result = run("chat", "Hi")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "You said: Hi\n", "")


def test_piped_input_is_the_user_message(service: FakeService, run: Callable[..., Result]) -> None:
    assert run("chat", stdin="Two\nlines\n").stdout == "You said: Two\nlines\n"


def test_piped_input_is_not_read_if_there_is_an_argument(run: Callable[..., Result]) -> None:
    assert run("chat", "Hi", stdin="unread").stdout == "You said: Hi\n"


def test_absent_options_are_not_sent(service: FakeService, run: Callable[..., Result]) -> None:
    run("chat", "Hi")
    (params,) = service.requests
    assert params.model == "tiny"  # the first model of the service
    assert conversation(params) == [("USER", "Hi")]
    assert not params.sampling.ListFields()


def test_options_are_sent(service: FakeService, run: Callable[..., Result]) -> None:
    options = "--model large --system Rhyme. --temperature 0 --max-tokens 5 --seed 7"
    run("chat", *options.split(), "Hi")
    (params,) = service.requests
    assert params.model == "large"
    assert conversation(params) == [("SYSTEM", "Rhyme."), ("USER", "Hi")]
    assert params.sampling == chat_pb2.SamplingParams(
        temperature=0, max_completion_tokens=5, seed=7
    )


@pytest.mark.parametrize("option", ["--seed=99999999999999999999", "--max-tokens=-1"])
def test_number_out_of_range_is_a_usage_error(run: Callable[..., Result], option: str) -> None:
    result = run("chat", option, "Hi")
    assert result.exit_code == 2
    assert "out of range" in result.stderr


def test_input_that_is_not_text_is_a_usage_error(run: Callable[..., Result]) -> None:
    result = run("chat", stdin=b"\xff")
    assert result.exit_code == 2
    assert "can't decode" in result.stderr


def test_service_without_models_is_an_error(
    service: FakeService, run: Callable[..., Result]
) -> None:
    service.models.served = []
    result = run("chat", "Hi")
    assert result.exit_code == 1
    assert result.stderr == f"error: {service.target} serves no model\n"


def test_reasoning_is_on_stderr(run: Callable[..., Result]) -> None:
    result = run("chat", "think")
    assert (result.stdout, result.stderr) == ("Done.\n", "Hmm. ")


def test_truncated_response_is_reported(run: Callable[..., Result]) -> None:
    result = run("chat", "ramble")
    assert result.stdout == "And so on\n"
    assert "truncated" in result.stderr


def test_text_is_streamed_and_ctrl_c_cancels(service: FakeService) -> None:
    with subprocess.Popen(
        [*COMMAND, service.target, "count"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.read(4) == b"1 2 "
        process.send_signal(signal.SIGINT)
        assert service.cancelled.acquire(timeout=FAILSAFE_S)
        _, stderr = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert not stderr


def test_closed_stdout_cancels_the_call(service: FakeService) -> None:
    with subprocess.Popen(
        [*COMMAND, service.target, "count"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(1)
        process.stdout.close()
        assert service.cancelled.acquire(timeout=FAILSAFE_S)
        assert not process.stderr.read()


# A conversation


class Terminal:
    """A terminal with a command in its foreground."""

    # The first terminal of a session becomes its controlling terminal. In that, ^C sends SIGINT.
    TAKE_OVER = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )

    def __init__(self, command: list[str]) -> None:
        self._screen, keyboard = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.TAKE_OVER, *command],
            stdin=keyboard,
            stdout=keyboard,
            stderr=keyboard,
            start_new_session=True,
            env=os.environ | {"TERM": "dumb"},
        )
        os.close(keyboard)

    def press(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def read_until(self, text: str) -> str:
        """Return the output up to and including `text`."""
        seen = ""
        while not seen.endswith(text):
            ready, _, _ = select.select([self._screen], [], [], FAILSAFE_S)
            assert ready, f"{text!r} has not appeared after {seen!r}"
            seen += os.read(self._screen, 1).decode()
        return seen

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._screen)


@pytest.fixture
def terminal(service: FakeService) -> Iterator[Terminal]:
    terminal = Terminal([*COMMAND, service.target])
    yield terminal
    terminal.close()


def test_conversation_history_has_messages_with_a_response(
    service: FakeService, terminal: Terminal
) -> None:
    terminal.read_until("> ")
    terminal.press("Hi\n")
    terminal.read_until("You said: Hi\r\n> ")
    terminal.press("too long\n")  # rejected, so it is not in the history
    terminal.read_until("CONTEXT_LENGTH_EXCEEDED]\r\n> ")
    terminal.press("\n")  # sends nothing
    terminal.read_until("> ")
    terminal.press("count\n")
    counted = terminal.read_until("1 2 3 ")
    terminal.press("\x03")  # stops the response and cancels the call
    counted += terminal.read_until("[stopped]")
    terminal.read_until("> ")
    assert service.cancelled.acquire(timeout=FAILSAFE_S)
    terminal.press("Bye\n")
    terminal.read_until("You said: Bye\r\n> ")
    terminal.press("\x04")
    assert terminal.process.wait(FAILSAFE_S) == 0

    *before, (role, partial), last = conversation(service.requests[-1])
    assert before == [("USER", "Hi"), ("ASSISTANT", "You said: Hi"), ("USER", "count")]
    assert role == "ASSISTANT"
    # Ctrl-C may come after a piece is received and before it is shown.
    assert partial.removesuffix(partial.split()[-1] + " ") in counted
    assert partial.startswith("1 2 3 ")
    assert last == ("USER", "Bye")
    assert len(service.requests) == 4


def test_ctrl_c_at_the_prompt_exits(terminal: Terminal) -> None:
    terminal.read_until("> ")
    terminal.press("half a quest")
    terminal.read_until("half a quest")
    for _ in range(10):  # CPython's `input` can miss a signal between two of its calls of select
        terminal.press("\x03")
        with suppress(subprocess.TimeoutExpired):
            assert terminal.process.wait(FAILSAFE_S / 10) == 0
            return
    pytest.fail("still there")
