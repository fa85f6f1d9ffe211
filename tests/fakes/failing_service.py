"""The service with a model that fails after its warm-up; run it as a module."""

import os

from service.__main__ import main
from service.engine import load
from service.engine.batch import Batch
from service.engine.core import Computed, EngineCore
from service.engine.load import EngineOptions, load_engine


class FailingRunner:
    """A runner, in place of the loaded model, whose steps fail."""

    def run(self, batch: Batch) -> list[Computed]:
        raise RuntimeError("the model is broken")


def load_failing_engine(options: EngineOptions) -> tuple[EngineCore, int]:
    core, max_model_len = load_engine(options)
    core._runner = FailingRunner()
    return core, max_model_len


if __name__ == "__main__":
    load.load_engine = load_failing_engine
    os._exit(main())
