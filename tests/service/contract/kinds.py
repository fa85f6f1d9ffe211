"""The engines that the contract is tested on."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest

from service.domain.engine import Engine
from service.domain.engine_settings import EngineSettings
from service.engines import make_engine
from tests.support.device import DEVICE


@dataclass(frozen=True)
class Kind:
    """An engine to test, and how it is made.

    Args:
        name: The engine's name or import string, as in `--engine`.
        settings: The settings in which it differs from the others.
    """

    name: str
    settings: dict[str, Any]

    def make(self, **settings: Any) -> Engine:
        """Return an engine that has not been started."""
        common: dict[str, Any] = {
            "device": DEVICE,
            "dtype": "float32",
            "quantization": "none",
            "kv_cache_memory_bytes": 2**25,
            "num_threads": 1,
        }
        return make_engine(self.name, EngineSettings(**common | self.settings | settings))


KINDS = [
    # Blocks of 256 tokens, the default on CUDA, would be longer than the prompts.
    pytest.param(Kind("local", {"block_size": 32}), id="local"),
    pytest.param(Kind("tests.fakes.small_engine:small_engine", {}), id="small"),
    pytest.param(Kind("tests.fakes.small_vllm:small_vllm_engine", {}), id="vllm over small"),
    pytest.param(
        Kind("vllm", {}),
        id="vllm",
        marks=[
            pytest.mark.vllm,
            pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
        ],
    ),
]
