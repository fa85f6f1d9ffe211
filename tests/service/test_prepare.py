"""`python -m service.prepare`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.config import ServiceSettings
from service.domain.engine_settings import EngineModel, EngineSettings
from service.errors import ModelLoadError
from service.prepare import make_files
from tests.fakes.engine import FakeEngine
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


def test_backend_without_an_engine_has_nothing_to_prepare() -> None:
    """The command ends although the upstream does not exist."""
    done = prepare("--engine", "openai", "--upstream-url", "http://127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1])["event"] == "nothing_to_prepare"


def test_check_finds_what_the_check_of_the_service_finds(tmp_path: Path) -> None:
    upstream = "--engine", "openai", "--upstream-url", "http://127.0.0.1:1"
    done = prepare("--check", *upstream, "--upstream-api-key-file", str(tmp_path / "missing"))
    assert done.returncode == 2
    assert "missing" in done.stderr


class _FailingEngine(FakeEngine):
    def __init__(self) -> None:
        super().__init__()
        self.is_stopped = False

    async def start(self, model: EngineModel) -> None:
        raise ModelLoadError("The weights are too large.")

    async def stop(self) -> bool:
        self.is_stopped = True
        return await super().stop()


_failing = _FailingEngine()


def failing_engine(_: EngineSettings) -> _FailingEngine:
    return _failing


async def test_engine_that_cannot_load_is_stopped(tmp_path: Path) -> None:
    model = save_model(tmp_path / "tiny", vocab_size=300)
    options = "--engine", f"{__name__}:failing_engine", "--model", str(model)
    settings = ServiceSettings.load([*options, "--cache-dir", str(tmp_path / "cache")])
    with pytest.raises(ModelLoadError, match="too large"):
        await make_files(settings)
    assert _failing.is_stopped
