"""`python -m service.prepare`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_model import save_model


def prepare(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "service.prepare", "--log-format", "json", *arguments]
    environment = {**os.environ, "CXX": "/nothing", **variables}  # kernels have tests of their own
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_prepared_model_leaves_its_files_in_the_cache(tmp_path: Path) -> None:
    model = save_model(tmp_path / "tiny", vocab_size=300)
    cache = tmp_path / "cache"
    arguments = "--model", str(model), "--cache-dir", str(cache), "--quantization", "none"
    done = prepare(*arguments, CHATRPC_SERVICE_HOST="0.0.0.0")  # noqa: S104  # it does not listen
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stderr.splitlines()[-1])
    assert (last["event"], last["model"], last["max_model_len"]) == ("prepared", "tiny", 4096)
    (config,) = (cache / "configs").iterdir()
    assert config.stat().st_mode & 0o777 == 0o644  # root prepares an image, another user reads it


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--model", "no-such-model"], 1, "There is no model 'no-such-model'"),
        (["--max-num-seqs", "none"], 2, "max_num_seqs"),
    ],
)
def test_failed_preparation_is_explained_as_by_the_service(
    arguments: list[str], code: int, complaint: str
) -> None:
    done = prepare(*arguments)
    assert done.returncode == code
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
