"""The service as a process: its log, its reaction to signals and its exit codes."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from chatrpc.v1 import chat_service_pb2_grpc
from tests.support.service_process import Process, request
from tests.support.tiny_model import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("whole") / "tiny", vocab_size=300)


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    started = []

    def start(*arguments: str, module: str = "service") -> Process:
        started.append(Process(*arguments, module=module))
        return started[-1]

    yield start
    for process in started:
        process.close()


def test_signal_lets_running_completion_finish(start: Callable[..., Process], model: Path) -> None:
    process = start("--model", str(model))
    port = process.until("listening")["port"]
    process.until("ready")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = chat_service_pb2_grpc.ChatServiceStub(channel)
        stream = stub.StreamChatCompletion(request(num_tokens=300))
        first = next(stream)
        process.popen.send_signal(signal.SIGTERM)
        process.until("draining")
        *_, last = stream
    assert first.chunk.model == "tiny"
    assert last.chunk.usage.completion_tokens == 300
    assert process.wait() == 0
    assert '"event": "stopped"' in process.log


@pytest.mark.slow
def test_signal_during_the_load_ends_the_process_with_code_0(
    start: Callable[..., Process], model: Path
) -> None:
    process = start("--model", str(model))
    process.until("listening")
    process.popen.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert "Traceback" not in process.log


def test_engine_by_import_string_serves_requests(
    start: Callable[..., Process], model: Path
) -> None:
    engine = ("--engine", "tests.fakes.engine:scripted_engine")
    process = start("--model", str(model), *engine)
    port = process.until("listening")["port"]
    process.until("ready")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = chat_service_pb2_grpc.ChatServiceStub(channel)
        *_, last = stub.StreamChatCompletion(request(num_tokens=300))
    assert last.chunk.usage.completion_tokens == 2
    process.popen.send_signal(signal.SIGTERM)
    assert process.wait() == 0


@pytest.mark.slow
def test_engine_that_fails_repeatedly_ends_the_process(
    start: Callable[..., Process], model: Path
) -> None:
    process = start("--model", str(model), module="tests.fakes.failing_service")
    port = process.until("listening")["port"]
    process.until("ready")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = chat_service_pb2_grpc.ChatServiceStub(channel)
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as caught:
                next(stub.StreamChatCompletion(request(num_tokens=3)))
            assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert process.wait() == 1
    lines = [json.loads(line) for line in process.lines if line.startswith("{")]
    reasons = [line["reason"] for line in lines if line["event"] == "request_finished"]
    assert reasons == ["STEP_FAILED", "STEP_FAILED", "ENGINE_DEAD"]
    assert "the model is broken" in process.log
    assert "engine_failed" in process.log


@pytest.mark.slow
def test_engine_that_hangs_ends_the_process(start: Callable[..., Process], model: Path) -> None:
    arguments = ("--model", str(model), "--step-timeout-s", "0.5")
    process = start(*arguments, module="tests.fakes.wedged_service")
    port = process.until("listening")["port"]
    process.until("ready")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = chat_service_pb2_grpc.ChatServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.StreamChatCompletion(request(num_tokens=3)))
        assert caught.value.code() in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE}
    assert "wedged_service" in process.until("engine_hangs")["stack"]
    assert process.wait() == 1


@pytest.mark.slow
def test_signal_ends_the_process_while_the_engine_hangs(
    start: Callable[..., Process], model: Path
) -> None:
    arguments = ("--model", str(model), "--step-timeout-s", "3600", "--drain-timeout-s", "0.1")
    process = start(*arguments, module="tests.fakes.wedged_service")
    port = process.until("listening")["port"]
    process.until("ready")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = chat_service_pb2_grpc.ChatServiceStub(channel)
        stream = stub.StreamChatCompletion(request(num_tokens=3))
        process.until("wedged")
        process.popen.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError):
            next(stream)
    assert "wedged_service" in process.until("engine_hangs")["stack"]
    assert process.wait() == 1
    assert '"event": "stopped"' in process.log


@pytest.mark.slow
def test_event_loop_that_hangs_ends_the_process(start: Callable[..., Process], model: Path) -> None:
    arguments = ("--model", str(model), "--loop-timeout-s", "5")
    process = start(*arguments, module="tests.fakes.hanging_service")
    port = process.until("listening")["port"]
    process.until("ready")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = chat_service_pb2_grpc.ChatServiceStub(channel)
        with pytest.raises(grpc.RpcError):
            next(stub.StreamChatCompletion(request(num_tokens=3)))
    assert "hanging_service" in process.until("event_loop_hangs")["stack"]
    assert process.wait() == 1


# Each row has the arguments, the exit code, and a part of the error.
BAD_OPTIONS: list[tuple[list[str], int, str]] = [
    (["--max-num-batched-tokens", "1", "--max-num-seqs", "2"], 2, "max_num_batched_tokens must"),
    (["--engine", "none"], 2, "error: engine: There is no engine 'none'"),
    (["--engine", "vllm"], 2, "pip install 'chatrpc[vllm]'"),
    (["--engine", "no_such:make"], 2, "engine=no_such:make: the module no_such cannot be"),
    (["--engine", "no_such:make", "--check"], 2, "error: engine=no_such:make: the module"),
    (["--channelz"], 2, "channelz needs admin_port"),
    (["--otlp-endpoint", "collector:4317"], 2, "error: otlp_endpoint"),
    (["--config", "/nowhere.toml"], 2, "error: "),
    (["--nonsense"], 2, "--nonsense"),
    (["--host", "0.0.0.0"], 2, "--insecure"),  # noqa: S104
    (["--api-keys", "/nowhere.toml"], 2, "/nowhere.toml: No such file"),
    (["--api-keys", "/nowhere.toml", "--check"], 2, "error: /nowhere.toml: No such file"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--model", "no-such-model"], 1, "There is no model 'no-such-model'"),
        (["--max-num-seqs", "0"], 2, "error: max_num_seqs"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in BAD_OPTIONS),
    ],
)
def test_failed_start_is_explained_in_one_line(
    start: Callable[..., Process], arguments: list[str], code: int, complaint: str
) -> None:
    process = start(*arguments)
    assert process.wait() == code
    assert complaint in process.log
    assert "Traceback" not in process.log


@pytest.mark.slow
def test_check_of_valid_settings_starts_nothing(start: Callable[..., Process]) -> None:
    process = start("--check")
    assert process.wait() == 0
    assert process.log == ""


def test_unknown_environment_variable_ends_the_start(
    start: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATRPC_SERVICE_MAX_NUM_SEQ", "3")
    process = start()
    assert process.wait() == 2
    assert process.log == (
        "error: CHATRPC_SERVICE_MAX_NUM_SEQ is not an option; "
        "did you mean CHATRPC_SERVICE_MAX_NUM_SEQS?\n"
    )


@pytest.mark.slow
def test_port_in_use_is_rejected(start: Callable[..., Process], model: Path) -> None:
    first = start("--model", str(model))
    port = first.until("listening")["port"]
    second = start("--model", str(model), "--port", str(port))
    assert second.wait() == 1
    assert f"cannot listen on 127.0.0.1:{port}" in second.log
    assert "Traceback" not in second.log


def test_settings_come_from_command_line_over_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "service.toml"
    file.write_text('model = "from-file"\nmax_num_seqs = 3\nmax_queue_size = 7\n')
    code = (
        "import sys; from service.config import ServiceSettings;"
        "s = ServiceSettings.load(sys.argv[1:]);"
        "print(s.model, s.max_num_seqs, s.max_queue_size)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--config", str(file), "--model", "from-cli"],
        capture_output=True,
        text=True,
        check=True,
        env={"CHATRPC_SERVICE_MODEL": "from-env", "CHATRPC_SERVICE_MAX_NUM_SEQS": "5"},
    )
    assert done.stdout.split() == ["from-cli", "5", "7"]
