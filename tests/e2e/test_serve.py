"""The stack starts and stops as from a terminal."""

import http.client
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.make_serve import MODEL, ROOT, Served, free_port, interrupt, start_stack

pytestmark = pytest.mark.slow


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Served]:
    served = start_stack(tmp_path / "stderr.log")
    yield served
    if served.process.poll() is None:
        interrupt(served)


def test_ctrl_c_during_a_stream_stops_both_processes(own_stack: Served, tmp_path: Path) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Count."}],
        "ignore_eos": True,
        "stream": True,
    }
    headers = {"content-type": "application/json"}
    with closing(http.client.HTTPConnection("127.0.0.1", own_stack.http_port)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        while not (line := response.readline()).startswith(b"data: "):
            assert line in {b": ping\n", b"\n"}
        interrupt(own_stack)
    log = (tmp_path / "stderr.log").read_text()
    assert "Traceback" not in log
    assert re.search(r"stopped +\[service\.__main__\]", log)
    for port in (own_stack.http_port, own_stack.grpc_port):
        with pytest.raises(ConnectionRefusedError):
            http.client.HTTPConnection("127.0.0.1", port).connect()


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("no-such-model", "There is no model 'no-such-model'"),
        ("/nowhere/model.gguf", "/nowhere/model.gguf"),
        ("README.md", "There is no model 'README.md'"),
    ],
)
def test_unavailable_model_is_reported_in_one_line(model: str, complaint: str) -> None:
    done = subprocess.run(
        ["make", "serve", f"MODEL={model}", f"HTTP_PORT={free_port()}", f"GRPC_PORT={free_port()}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
