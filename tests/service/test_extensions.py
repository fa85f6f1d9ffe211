"""The further services that the settings name."""

import subprocess
import sys
from pathlib import Path

import pytest

from chatrpc_process.errors import ConfigError
from service import extensions
from service.config import ServiceSettings
from service.extensions import load_extensions
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.serving.lifecycle import Lifecycle

ROOT = Path(__file__).parents[2]


def test_protocol_is_served_if_the_settings_name_it() -> None:
    [make] = load_extensions(ServiceSettings.load(["--serve-vllm-protocol"]))
    assert make(Lifecycle(SERVICE_NAMES)).service_name == "vllm.grpc.engine.VllmEngine"


def test_protocol_is_not_imported_by_default() -> None:
    program = (
        "import sys, service.__main__\n"
        "from service.config import ServiceSettings\n"
        "from service.extensions import load_extensions\n"
        "assert not load_extensions(ServiceSettings.load([]))\n"
        "print([name for name in sys.modules if 'vllm_protocol' in name or 'smg' in name])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extensions, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'chatrpc\[vllm-protocol\]'"):
        load_extensions(ServiceSettings.load(["--serve-vllm-protocol"]))


def test_engine_without_token_ids_is_rejected() -> None:
    options = ["--engine", "openai", "--upstream-url", "http://127.0.0.1:1"]
    with pytest.raises(ConfigError, match="serve_vllm_protocol cannot be set with engine=openai"):
        ServiceSettings.load([*options, "--serve-vllm-protocol"])
