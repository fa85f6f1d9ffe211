"""All commands and programs of the README run unchanged, except for their ports."""

import os
import re
import subprocess
import sys

import pytest

from tests.support.make_serve import ROOT, Served

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
# The fixture `served` runs the first of these. The second runs this test.
NOT_RUN = {"make serve\n", "make test\n"}


def test_readme_has_the_two_commands() -> None:
    assert {text for _, text in BLOCKS} >= NOT_RUN


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "text"),
    [(language, text) for language, text in BLOCKS if text not in NOT_RUN],
    ids=lambda value: value.splitlines()[0][:40],
)
def test_code_block_of_the_readme_runs(served: Served, language: str, text: str) -> None:
    text = text.replace("50051", str(served.grpc_port)).replace("8000", str(served.http_port))
    command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euc", text]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CHATRPC_TARGET": served.target},
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


@pytest.mark.slow
def test_curl_command_of_the_banner_returns_a_completion(served: Served) -> None:
    line = next(line for line in served.banner if "curl" in line)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert '"chat.completion"' in done.stdout
