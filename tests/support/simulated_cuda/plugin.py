"""A pytest plugin that runs tests on the simulated CUDA device.

`python -m pytest -p tests.support.simulated_cuda.plugin FILE` runs the tests of a file. The device
is installed when pytest imports this module, because test modules import torch.
"""

import os

import pytest

from tests.support.simulated_cuda.device import current_counts, install

os.environ["CHATRPC_TEST_DEVICE"] = "cuda"
install()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if no test has used the device."""
    if session.testscollected and not current_counts().kernels:
        raise pytest.UsageError("no test has run a kernel on the simulated CUDA device")
