"""The service with a model whose steps never end; run it as a module."""

import os
import threading

import structlog

from service.__main__ import main
from service.engine import load
from service.engine.batch import Batch
from service.engine.core import Computed, EngineCore
from service.engine.load import EngineOptions, load_engine

log = structlog.get_logger(__name__)


class WedgedRunner:
    """A runner, in place of the loaded model, whose steps never end."""

    def run(self, batch: Batch) -> list[Computed]:
        log.info("wedged")
        threading.Event().wait()
        raise AssertionError


def load_wedged_engine(options: EngineOptions) -> tuple[EngineCore, int]:
    core, max_model_len = load_engine(options)
    core._runner = WedgedRunner()
    return core, max_model_len


if __name__ == "__main__":
    load.load_engine = load_wedged_engine
    os._exit(main())
