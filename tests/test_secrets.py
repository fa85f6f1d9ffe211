"""API keys are not in logs, responses, metrics or command lines, and prompts are not in logs.

The tests put valid and invalid keys wherever a caller or an operator may put a key.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from chatrpc.v1 import chat_service_pb2_grpc
from chatrpc_process.errors import ConfigError
from gateway_http.config import Settings
from tests.support.api_keys import key, write
from tests.support.service_process import Process, request
from tests.support.tiny_model import save_model

KNOWN, WRONG, UPSTREAM, MISPLACED = (
    f"sk-chatrpc-{word}-{'0123456789abcdef' * 2}"
    for word in ("known", "wrong", "upstream", "misplaced")
)
PROMPT = "what only the caller may read"
SECRETS = (KNOWN, WRONG, UPSTREAM, MISPLACED)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("whole") / "tiny", vocab_size=300)


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*arguments: str, module: str) -> Process:
        started.append(Process("--log-level", "debug", *arguments, module=module))
        return started[-1]

    yield start
    for process in started:
        process.close()


def metrics_port(service: Process) -> int:
    return int(service.until("listening_for_metrics")["port"])


def call_gateway(http: httpx.Client) -> Iterator[httpx.Response]:
    """Send requests with keys in all possible places. Yield the responses, also of failures."""
    chat = "/v1/chat/completions"
    body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}]}
    good = {"authorization": f"Bearer {KNOWN}"}
    for headers in (
        good,
        {"x-api-key": KNOWN},
        {"authorization": f"Bearer {WRONG}"},
        {"authorization": f"Basic {WRONG}"},
        {"authorization": WRONG},
        {"x-api-key": WRONG},
    ):
        yield http.get("/v1/models", headers=headers)
        yield http.post(chat, json=body | {"model": "none"}, headers=headers)
        yield http.post(chat, content=b'{"', headers=headers)
        yield http.post(chat, json=body | {"stop": [PROMPT] * 99}, headers=headers)
        yield http.post(chat, json=body | {"n": PROMPT}, headers=headers)
        yield http.get(f"/none?api_key={MISPLACED}", headers=headers)
    yield http.post(f"{chat}?api_key={MISPLACED}&access_token={MISPLACED}", json=body)
    yield http.post(chat, json=body, headers=good)  # the model fails, with a traceback
    yield http.post(chat, json=body | {"stream": True}, headers=good)
    yield http.get("/metrics", headers=good)
    yield http.get("/healthz", headers=good)


@pytest.mark.slow
def test_secrets_are_not_logged_or_returned(
    start: Callable[..., Process], model: Path, tmp_path: Path
) -> None:
    keys = write(tmp_path / "keys.toml", key(KNOWN))
    service_keys = write(tmp_path / "service.toml", key(UPSTREAM, "may_act_for_others = true"))
    own = write(tmp_path / "own", UPSTREAM)
    service = start(
        *("--model", str(model), "--api-keys", str(service_keys), "--metrics-port", "0"),
        module="tests.fakes.failing_service",
    )
    port = service.until("listening")["port"]
    counted = metrics_port(service)
    service.until("ready")
    gateway = start(
        *("--upstream", f"127.0.0.1:{port}", "--api-keys", str(keys)),
        *("--upstream-api-key-file", str(own)),
        module="gateway_http",
    )
    url = f"http://127.0.0.1:{gateway.until('listening')['port']}"
    json = {"content-type": "application/json"}
    with httpx.Client(base_url=url, timeout=120, headers=json) as http:
        answers = list(call_gateway(http))
    assert {200, 400, 401, 404, 500} <= {answer.status_code for answer in answers}
    told = [str(answer.headers) + answer.text for answer in answers]
    told.append(httpx.get(f"http://127.0.0.1:{counted}/metrics").text)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = chat_service_pb2_grpc.ChatServiceStub(channel)
        for metadata in ((("authorization", f"Bearer {WRONG}"),), (("x-api-key", WRONG),)):
            with pytest.raises(grpc.RpcError) as caught:
                next(stub.StreamChatCompletion(request(num_tokens=3), metadata=metadata))
            told.append(str(caught.value))
    write(keys, f"{MISPLACED} = 1")
    write(own, f"{MISPLACED}\n{MISPLACED}")
    write(service_keys, f'[[key]]\n"{MISPLACED}" = "{MISPLACED}"')
    for process, reloads in ((gateway, 2), (service, 1)):
        for _ in range(reloads):
            process.until("file_reload_failed")
        told.append(Path(f"/proc/{process.popen.pid}/cmdline").read_text())
        told.append(Path(f"/proc/{process.popen.pid}/environ").read_text())
        process.popen.terminate()
        process.wait()
        told.append(process.log)
    assert "the model is broken" in service.log  # so the log has a traceback
    assert '"key": "one"' in gateway.log
    for secret in SECRETS:
        assert not [text for text in told if secret in text]
    for log in (service.log, gateway.log):
        assert PROMPT not in log
        assert "request_finished" in log


@pytest.mark.parametrize("text", ["port = 'SECRET'", "SECRET", "host = ['SECRET']", "a = 'SECRET"])
def test_errors_of_settings_do_not_quote_values(tmp_path: Path, text: str) -> None:
    file = write(tmp_path / "gateway.toml", text.replace("SECRET", MISPLACED))
    with pytest.raises(ConfigError) as caught:
        Settings.load(["--config", str(file)])
    assert MISPLACED not in str(caught.value)
