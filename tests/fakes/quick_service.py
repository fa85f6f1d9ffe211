"""The service with a small fake model instead of a real one; run it as a module.

Without torch it starts in a second. Prompts can make a step fail: see `TestModel`.
"""

import os
import sys
import threading
import time
from pathlib import Path

from service import __main__ as service_main
from service import model as service_model
from service.config import ServiceSettings
from service.domain.backend import ServedModel
from service.domain.engine import Engine
from service.domain.engine_settings import EngineModel, EngineSettings
from service.domain.model import LocalModel, ModelCard
from service.domain.sampling import SamplingParams
from service.engine.async_engine import AsyncEngine
from service.engine.batch import Batch, ScheduledSequence
from service.engine.block_pool import BlockPool
from service.engine.core import Computed, DeviceLost, EngineCore
from service.engine.limits import EngineLimits
from service.engine.scheduler import Scheduler
from service.generation.local_backend import locally_served
from tests.fakes.tokenizer import EOS, ByteTokenizer

MODEL_ID = os.environ.get("MODEL_ID", "fake")

_MAX_MODEL_LEN = 1 << 16
_NUM_BLOCKS = 4096


class TestModel:
    """`service.engine.core.Runner` that generates "a" for every token.

    The prefill of a prompt that contains `!fail` fails. With `!lose` the device is lost, and with
    `!hang` the step never returns. Other steps take `step_s` seconds.
    """

    __test__ = False  # pytest does not collect it

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def run(self, batch: Batch) -> list[Computed]:
        prompts = b"".join(_prompt(scheduled) for scheduled in batch.scheduled)
        if b"!fail" in prompts:
            raise RuntimeError("secret words of the model")
        if b"!lose" in prompts:
            raise DeviceLost("secret words of the device")
        if b"!hang" in prompts:
            threading.Event().wait()
        time.sleep(self._step_s)
        return [Computed((ord("a"),)) if s.is_sampled else Computed() for s in batch.scheduled]


def _prompt(scheduled: ScheduledSequence) -> bytes:
    """Return the prompt if the step computes the last part of it."""
    sequence = scheduled.sequence
    if not scheduled.is_sampled or sequence.num_output_tokens:
        return b""
    return bytes(token_id for token_id in sequence.token_ids if token_id < EOS)


class QuickLoader:
    """Replaces `service.model.ModelLoader`."""

    model_id = MODEL_ID

    def __init__(self, _settings: ServiceSettings, *, reads_gguf: bool = False) -> None: ...

    def load(self) -> EngineModel:
        return EngineModel(Path())

    def served(self, engine: Engine) -> ServedModel:
        created, max_model_len = 1_700_000_000, engine.max_model_len
        card = ModelCard(MODEL_ID, ("alias",), created, "tests", "nowhere", max_model_len, "fp")
        return locally_served(
            LocalModel(card, ByteTokenizer(), engine, SamplingParams(), frozenset({EOS}), 257)
        )


def quick_engine(settings: EngineSettings) -> AsyncEngine:
    """Return an engine with the limits of the settings that computes with a `TestModel`."""

    def load(_model: EngineModel) -> tuple[EngineCore, int]:
        limits = EngineLimits.of(settings, "cpu")
        pool = BlockPool(_NUM_BLOCKS, limits.block_size)
        scheduler = Scheduler(pool, limits.max_num_seqs, limits.max_num_batched_tokens)
        model = TestModel(float(os.environ.get("STEP_S", "0.002")))
        max_model_len = settings.max_model_len or _MAX_MODEL_LEN
        return EngineCore(scheduler, model, max_model_len), max_model_len

    return AsyncEngine(
        load,
        max_queue_size=settings.max_queue_size,
        step_timeout_s=settings.step_timeout_s,
    )


if __name__ == "__main__":
    service_model.ModelLoader = QuickLoader  # type: ignore[misc,assignment]  # the fake replaces the real loader
    sys.argv += ["--engine", "tests.fakes.quick_service:quick_engine"]
    os._exit(service_main.main())
