"""The service with the engine vllm over a fake core; run it as a module. See `vllm_core`."""

import asyncio
import os
import sys
from collections.abc import Mapping
from typing import Any

from service import __main__ as service_main
from service import model as service_model
from service.domain.engine_settings import EngineSettings
from service.vllm_engine.arguments import settings_arguments
from service.vllm_engine.child import prepare_environment
from service.vllm_engine.client import StepListener, VllmClient
from service.vllm_engine.engine import VllmEngine
from tests.fakes.quick_service import QuickLoader
from tests.fakes.vllm_core import CoreProcess


def fake_vllm_engine(settings: EngineSettings) -> VllmEngine:
    """Return the engine vllm over a `CoreProcess`; see `EngineFactory`."""
    loop = asyncio.get_running_loop()

    def launch(arguments: Mapping[str, Any], on_step: StepListener) -> VllmClient:
        prepare_environment(settings)
        step_s = float(os.environ["STEP_S"])
        return CoreProcess(loop, on_step, step_s, os.environ["START_FAILURE"])

    return VllmEngine(
        settings_arguments(settings),
        launch,
        max_queue_size=settings.max_queue_size,
        step_timeout_s=settings.step_timeout_s,
    )


if __name__ == "__main__":
    service_model.ModelLoader = QuickLoader  # type: ignore[misc,assignment]  # the fake replaces the real loader
    sys.argv += ["--engine", "tests.fakes.vllm_service:fake_vllm_engine"]
    os._exit(service_main.main())
