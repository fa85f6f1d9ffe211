"""`python -m tests.fakes.vllm_child` starts a process as vLLM starts its core, and waits.

The process prints a JSON object about itself, and waits too.
"""

import json
import logging
import multiprocessing
import os
import signal
import sys

from chatrpc_process.logs.configuration import configure_logging, configured_logging
from service.domain.engine_settings import EngineSettings
from service.vllm_engine.child import plugin, prepare_environment


def run() -> None:
    plugin()
    about = {
        "pid": os.getpid(),
        "group": os.getpgid(0),
        "logging": configured_logging(),
        "level": logging.getLogger("vllm").level,
    }
    sys.stdout.write(json.dumps(about) + "\n")
    sys.stdout.flush()
    signal.pause()


if __name__ == "__main__":
    configure_logging("warning", "json")
    prepare_environment(EngineSettings())
    plugin()  # does nothing in this process
    multiprocessing.get_context("spawn").Process(target=run).start()
    signal.pause()
