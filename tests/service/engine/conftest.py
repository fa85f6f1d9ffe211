from collections.abc import Iterator
from typing import Any

import pytest
import structlog
import torch
import transformers


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: it is enough for tiny models, and more threads are slow on busy machines."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(autouse=True)
def _plain_logs() -> Iterator[None]:
    """Capture logs, because structlog needs 0.1 s to format a traceback."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> None:
    logging: Any = transformers.utils.logging  # this module has no types
    logging.disable_progress_bar()
