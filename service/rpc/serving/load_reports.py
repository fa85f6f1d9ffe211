"""Reports of this replica's load, for clients that balance by it.

The service is `xds.service.orca.v3.OpenRcaService`, which gRPC's `weighted_round_robin` calls by
itself: https://github.com/cncf/xds/blob/main/xds/service/orca/v3/orca.proto. The weight of a
replica is its requests per second, divided by its utilization. One request may cost ten times as
much as another. So every replica reports the same number of requests, and the weight depends only
on the utilization.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from service.errors import Draining
from service.rpc.calls.context import Context
from service.rpc.serving.lifecycle import Lifecycle, State

METHOD = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics"

# gRPC ignores a report of 0.
_LEAST_UTILIZATION = 0.01
_LEAST_INTERVAL_S, _MOST_INTERVAL_S = 1.0, 60.0
_SAMPLE_S = 0.1
_SMOOTHING = 0.1  # weight of the newest sample in the running mean of about one second


def _messages() -> tuple[Any, Any]:
    """Return the classes of a request and of a report, with only the fields that are used here.

    They are not in protobuf's default pool, because another package of the process may have put the
    complete protos there.
    """
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="orca", package="orca", syntax="proto3")
    duration = file.message_type.add(name="Duration")
    duration.field.add(name="seconds", number=1, type=field.TYPE_INT64)
    duration.field.add(name="nanos", number=2, type=field.TYPE_INT32)
    request = file.message_type.add(name="OrcaLoadReportRequest")
    request.field.add(
        name="report_interval", number=1, type=field.TYPE_MESSAGE, type_name=".orca.Duration"
    )
    report = file.message_type.add(name="OrcaLoadReport")
    report.field.add(name="rps_fractional", number=6, type=field.TYPE_DOUBLE)
    report.field.add(name="application_utilization", number=9, type=field.TYPE_DOUBLE)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    classes = message_factory.GetMessageClassesForFiles([file.name], pool)
    return classes["orca.OrcaLoadReportRequest"], classes["orca.OrcaLoadReport"]


REQUEST, REPORT = _messages()


class LoadReports:
    """The servicer. It reports the load of the models of `lifecycle`.

    A report is a mean over about a second. If it were the load of one moment, a replica that is
    idle at that moment would get all calls of the next second.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._utilization = 0.0
        self._num_readers = 0
        self._sampling: asyncio.Task[None] | None = None

    def add_to(self, server: grpc.aio.Server) -> None:
        handler = grpc.unary_stream_rpc_method_handler(
            self._stream_core_metrics, REQUEST.FromString, REPORT.SerializeToString
        )
        _, service, method = METHOD.split("/")
        handlers = grpc.method_handlers_generic_handler(service, {method: handler})
        server.add_generic_rpc_handlers((handlers,))

    async def _stream_core_metrics(
        self, request: Any, context: Context
    ) -> AsyncGenerator[Any, None]:
        """Yield reports at the requested interval, until the service drains."""
        asked = request.report_interval
        asked_s = asked.seconds + asked.nanos / 1e9
        interval_s = min(max(_LEAST_INTERVAL_S, asked_s), _MOST_INTERVAL_S)
        if self._is_draining:  # after a report gRPC would reopen the stream
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(Draining()))
        with self._sampled():
            while not self._is_draining:
                yield REPORT(rps_fractional=1, application_utilization=self._utilization)
                await asyncio.sleep(interval_s)

    @property
    def _is_draining(self) -> bool:
        return self._lifecycle.state is State.DRAINING

    @contextmanager
    def _sampled(self) -> Iterator[None]:
        """Keep the utilization up to date while in the context."""
        if self._num_readers == 0:
            self._utilization = self._sample()
            self._sampling = asyncio.ensure_future(self._keep())
        self._num_readers += 1
        try:
            yield
        finally:
            self._num_readers -= 1
            if self._num_readers == 0 and self._sampling is not None:
                self._sampling.cancel()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_S)
            self._utilization += _SMOOTHING * (self._sample() - self._utilization)

    def _sample(self) -> float:
        """Return the utilization: all sequences, divided by the number that can run at once.

        It is larger than 1 if sequences wait.
        """
        loads = [model.backend.load() for model in self._lifecycle.models]
        num_sequences = sum(load.num_sequences for load in loads)
        max_running = sum(load.max_running for load in loads)
        return max(_LEAST_UTILIZATION, num_sequences / max(max_running, 1))
