"""A fake service: the health names and the model list, and a journal of its events.

FAKE_SERVICE may be `dies` (at start, with exit code 3) or `stubborn` (ignores SIGTERM).
It is ready when a file named `gate` exists in the journal's folder.
"""

import argparse
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatrpc.v1 import model_service_pb2, model_service_pb2_grpc

JOURNAL = Path(os.environ["JOURNAL"])
MODE = os.environ.get("FAKE_SERVICE")


def note(event: str) -> None:
    with JOURNAL.open("a") as journal:
        journal.write(f"service {event}\n")


class Health(health_pb2_grpc.HealthServicer):
    def Check(  # noqa: N802  named by the proto
        self, request: health_pb2.HealthCheckRequest, context: object
    ) -> health_pb2.HealthCheckResponse:
        note(f"asked for {request.service}")
        is_ready = JOURNAL.with_name("gate").exists()
        return health_pb2.HealthCheckResponse(
            status=health_pb2.HealthCheckResponse.SERVING
            if is_ready
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )


class Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, model: str) -> None:
        self._model = model

    def ListModels(  # noqa: N802  named by the proto
        self, request: model_service_pb2.ListModelsRequest, context: object
    ) -> model_service_pb2.ListModelsResponse:
        return model_service_pb2.ListModelsResponse(
            models=[model_service_pb2.Model(id=self._model)]
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="it's default")
    parser.add_argument("--drain-timeout-s", type=float, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--api-keys")
    parser.add_argument("--insecure", action="store_true")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    note(f"started {os.getpid()}")
    if options.api_keys is not None:
        note(f"keys {options.api_keys}")
    if MODE == "dies":
        sys.stderr.write(f"error: no model {options.model}\n")
        sys.exit(3)

    stop = threading.Event()

    def on_sigterm(*_: object) -> None:
        note("stopping")
        stop.set()

    signal.signal(signal.SIGTERM, on_sigterm)
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
    models = Models(options.model)  # type: ignore[abstract]  # one method is used
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(models, server)
    server.add_insecure_port(f"{options.host}:{options.port}")
    server.start()
    stop.wait()
    if MODE == "stubborn":
        threading.Event().wait()
    server.stop(None).wait()
    note("stopped")


main()
