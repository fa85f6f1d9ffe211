"""Settings of all tests, and their distribution over processes."""

import os
import signal
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

# A shell makes its background jobs ignore SIGINT. The processes that tests start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The service sets it, too. Without it, waiting threads of OpenMP would take the cores from other
# tests. It must be set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# The duration of an example depends on the machine and its load, so none has a deadline.
settings.register_profile("quick", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=200)
settings.load_profile("quick")

# Folders that run in one process each, since their tests share something costly.
_IN_ONE_PROCESS = (
    "tests/e2e/",  # the service with the embedded model
    "tests/service/engine/native/",  # the compiled kernels
)


class _ByFile(LoadFileScheduling):  # type: ignore[misc]  # xdist ships no types
    """Run the tests of a file in one process, and so those of a folder in `_IN_ONE_PROCESS`."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((folder for folder in _IN_ONE_PROCESS if file.startswith(folder)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return _ByFile(config, log)
