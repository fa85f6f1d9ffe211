"""The engine's tests on a simulated CUDA device, each file in a process of its own.

Tests that need the simulated device have the marker `simulated_cuda`, and run only here. Other
tests take their device from `tests.support.device`.
"""

import subprocess
import sys

import pytest

from service.engine.native.compiler import NoCompiler
from tests.support.native_kernels import ARE_REQUIRED
from tests.support.simulated_cuda.library import build
from tests.support.sources import ROOT

FILES = (
    "tests/support/simulated_cuda/test_device.py",
    "tests/service/engine/test_attention.py",
    "tests/service/engine/test_block_bytes.py",
    "tests/service/engine/test_cuda.py",
    "tests/service/engine/test_load.py",
    "tests/service/engine/test_load_disk_cache.py",
    "tests/service/engine/test_logits_processors.py",
    "tests/service/engine/test_logprobs.py",
    "tests/service/engine/test_model_runner.py",
    "tests/service/engine/test_sampler.py",
    "tests/service/engine/test_step_cost.py",
    "tests/service/engine/test_stress.py",
    "tests/service/engine/test_transfer.py",
    "tests/service/contract",
)


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    """Compile the device. Without a compiler the tests are skipped, or fail if it is required."""
    try:
        build()
    except NoCompiler as error:
        if ARE_REQUIRED:
            raise
        pytest.skip(f"the simulated CUDA device cannot be compiled: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_tests_of_the_engine_pass_on_the_simulated_device(file: str) -> None:
    plugin = ("-p", "tests.support.simulated_cuda.plugin", "-p", "no:cacheprovider")
    command = (sys.executable, "-m", "pytest", "-q", *plugin, "-m", "not images and not vllm", file)
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
