"""The gRPC server: its options, its services, its start and its drain."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2_grpc

from chatrpc.v1 import (
    chat_service_pb2_grpc,
    classification_service_pb2_grpc,
    completion_service_pb2_grpc,
    decision_service_pb2_grpc,
    embedding_service_pb2_grpc,
    model_service_pb2_grpc,
)
from chatrpc_process.tls import TlsFiles, watch_tls
from chatrpc_process.tracing.api import OFF, Tracer
from service.domain.timeouts import ClientTimeouts
from service.metrics import Metrics
from service.rpc.calls.authorization import Access
from service.rpc.calls.interceptor import CallInterceptor
from service.rpc.calls.rpcs import BY_PATH, SERVICE_NAMES, Rpc
from service.rpc.calls.standard_services import StandardServiceInterceptor
from service.rpc.calls.work_pools import WorkPools
from service.rpc.chat_servicer import ChatServicer
from service.rpc.classification_servicer import ClassificationServicer
from service.rpc.completion_servicer import CompletionServicer
from service.rpc.decision_servicer import DecisionServicer
from service.rpc.embedding_servicer import EmbeddingServicer
from service.rpc.generation_calls import GenerationCalls
from service.rpc.model_servicer import ModelServicer
from service.rpc.pooling_calls import PoolingCalls
from service.rpc.serving.lifecycle import Lifecycle
from service.rpc.serving.load_reports import LoadReports
from service.rpc.serving.reflection import enable_reflection
from service.rpc.serving.tls import server_credentials

# Maximum size of a request in bytes. It is equal to the gateway's limit for a body. Responses may
# be larger, because log probabilities are long.
MAX_RECEIVED_BYTES = 8 << 20
MAX_SENT_BYTES = 32 << 20
MAX_METADATA_BYTES = 16 << 10

# gRPC ignores an unknown key, so a test compares these with the keys in its binary.
# There is no maximum_concurrent_rpcs: it would reject health checks too and get a busy service
# killed.
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_RECEIVED_BYTES),
    ("grpc.max_send_message_length", MAX_SENT_BYTES),
    # Clients may ping every 10 s, also during a long unary call. With the default of 300 s, gRPC
    # would close their connections with too_many_pings. Now it does so only for floods of pings.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.keepalive_permit_without_calls", 1),
    # The server pings clients, because otherwise the generation of a client that is gone would
    # continue. The default is 2 h. While no call waits for data from a client, the ping's own
    # timeout of 60 s applies.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    # Old connections are closed, so that clients resolve the name again and find new replicas.
    # Streams may continue for the grace period.
    ("grpc.max_connection_age_ms", 120_000),
    ("grpc.max_connection_age_grace_ms", 3_600_000),
    # Maximum number per connection. It is larger than the queue, so that further calls of a client
    # are rejected instead of waiting for a stream.
    ("grpc.max_concurrent_streams", 1024),
    # Both limits of gRPC have the same value. Between the two, it rejects calls at random.
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    # If it is off, a stream buffers 64 KiB of unread data. If it is on, megabytes were measured.
    ("grpc.http2.bdp_probe", 0),
    # It is on by default. Then a second server could bind the same port and get half of the calls.
    ("grpc.so_reuseport", 0),
)

_HEALTH = "grpc.health.v1.Health"
_CHANNELZ = "grpc.channelz.v1.Channelz"

# Seconds. After a drain only health watches are open. They delay stop() by this grace period.
_STOP_GRACE_S = 0.5


class ServiceExtension(Protocol):
    """A further gRPC service, of another package, that the server has."""

    @property
    def service_name(self) -> str:
        """Full name of the service."""
        ...

    @property
    def rpcs(self) -> Sequence[Rpc]: ...

    def add_to(
        self, server: grpc.aio.Server, generations: GenerationCalls, pools: WorkPools
    ) -> None:
        """Add the service to a server that has not been started."""
        ...


class Server:
    """A grpc.aio server with all services of this package.

    Args:
        lifecycle: The models and the state of the service; started and drained by this server.
        request_timeout_s: Maximum duration of a request in seconds.
        has_reflection: True if clients can read the protos by reflection.
        access: Authorizes calls.
        metrics: Counts calls.
        client_timeouts: Timeouts of calls for their clients.
        tracer: Records spans of calls.
        tls: Files of the server's certificate; None disables TLS.
        has_channelz: True if the admin port serves channelz, which lists connections and clients.
        extensions: Further services.
        options: Options of gRPC.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        *,
        request_timeout_s: float,
        has_reflection: bool = True,
        access: Access | None = None,
        metrics: Metrics | None = None,
        client_timeouts: ClientTimeouts | None = None,
        tracer: Tracer = OFF,
        tls: TlsFiles | None = None,
        has_channelz: bool = False,
        extensions: Sequence[ServiceExtension] = (),
        options: tuple[tuple[str, int], ...] = OPTIONS,
    ) -> None:
        self._lifecycle = lifecycle
        self.identity = None if tls is None else watch_tls(tls)
        self._credentials = None if self.identity is None else server_credentials(self.identity)
        options = (*options, ("grpc.enable_channelz", int(has_channelz)))
        rpcs = {rpc.path: rpc for each in extensions for rpc in each.rpcs} | BY_PATH
        standard = StandardServiceInterceptor(other_paths=rpcs)
        self._pools = WorkPools()
        metrics = metrics or Metrics()
        metrics.preparing.set_function(lambda: self._pools.num_jobs)
        self._server = grpc.aio.server(
            options=options,
            interceptors=[
                CallInterceptor(
                    access or Access(), metrics, self._pools, client_timeouts, tracer, rpcs
                ),
                standard,
            ],
        )
        self._admin = grpc.aio.server(options=options, interceptors=[standard])
        health_pb2_grpc.add_HealthServicer_to_server(lifecycle.health, self._admin)
        generations = GenerationCalls(lifecycle, self._pools, request_timeout_s)
        pooling = PoolingCalls(lifecycle, self._pools, request_timeout_s)
        chat_service_pb2_grpc.add_ChatServiceServicer_to_server(
            ChatServicer(generations), self._server
        )
        completion_service_pb2_grpc.add_CompletionServiceServicer_to_server(
            CompletionServicer(generations), self._server
        )
        decision_service_pb2_grpc.add_DecisionServiceServicer_to_server(
            DecisionServicer(pooling), self._server
        )
        embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server(
            EmbeddingServicer(pooling), self._server
        )
        classification_service_pb2_grpc.add_ClassificationServiceServicer_to_server(
            ClassificationServicer(pooling), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelServicer(lifecycle, self._pools, request_timeout_s), self._server
        )
        for extension in extensions:
            lifecycle.add_service(extension.service_name)
            extension.add_to(self._server, generations, self._pools)
        health_pb2_grpc.add_HealthServicer_to_server(lifecycle.health, self._server)
        LoadReports(lifecycle).add_to(self._server)
        if has_channelz:
            channelz.add_channelz_servicer(self._admin)
        if has_reflection:
            names = [extension.service_name for extension in extensions]
            enable_reflection(self._server, (*SERVICE_NAMES, *names, _HEALTH))
            enable_reflection(self._admin, (_HEALTH, _CHANNELZ) if has_channelz else (_HEALTH,))

    @property
    def num_jobs(self) -> int:
        """Number of preparation jobs (parsing, tokenizing, compiling) that run or wait."""
        return self._pools.num_jobs

    async def start(self, host: str, port: int) -> int:
        """Listen on an address. After that the health service reports: alive, but not ready.

        Returns:
            The port, which the system chose if `port` is 0.

        Raises:
            OSError: The address cannot be bound.
        """
        bound = _bind(self._server, host, port, self._credentials)
        await self._lifecycle.start()
        await self._server.start()
        return bound

    async def start_admin(self, host: str, port: int) -> int:
        """Listen on an address for health checks and channelz, without TLS.

        Probes have no certificates. The result and the errors are those of `start`.
        """
        bound = _bind(self._admin, host, port, None)
        await self._admin.start()
        return bound

    async def drain(self, delay_s: float, timeout_s: float) -> None:
        """Wait until generations have finished, at most `timeout_s`, then abort the rest and stop.

        Args:
            delay_s: Time in seconds for which new calls are still admitted. See `Lifecycle.drain`.
        """
        await self._lifecycle.drain(delay_s, timeout_s)
        await self.stop()

    async def stop(self) -> None:
        await asyncio.gather(self._server.stop(_STOP_GRACE_S), self._admin.stop(_STOP_GRACE_S))
        self._pools.close()


def _bind(
    server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None
) -> int:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}") from error
