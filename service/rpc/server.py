"""The gRPC server: its options, its services, its end."""

import asyncio

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2_grpc

from chatrpc.v1 import (
    chat_service_pb2_grpc,
    completion_service_pb2_grpc,
    model_service_pb2_grpc,
)
from chatrpc_process.tls import TlsFiles, watch_tls
from chatrpc_process.tracing.api import OFF, Tracer
from service.domain.timeouts import ClientTimeouts
from service.metrics import Metrics
from service.rpc.calls.authorization import Access
from service.rpc.calls.interceptor import CallInterceptor
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.calls.standard_services import StandardServiceInterceptor
from service.rpc.calls.work_pools import WorkPools
from service.rpc.chat_servicer import ChatServicer
from service.rpc.completion_servicer import CompletionServicer
from service.rpc.generation_calls import GenerationCalls
from service.rpc.model_servicer import ModelServicer
from service.rpc.serving.lifecycle import Lifecycle
from service.rpc.serving.load_reports import LoadReports
from service.rpc.serving.reflection import enable_reflection
from service.rpc.serving.tls import server_credentials

# As the gateway's limit of a body. Answers may be longer: log probabilities take much room.
MAX_RECEIVED_BYTES = 8 << 20
MAX_SENT_BYTES = 32 << 20
MAX_METADATA_BYTES = 16 << 10

# Core ignores a key that it does not know, so a test compares these with the keys in its binary.
# There is no maximum_concurrent_rpcs: it would refuse health checks too and get a busy service
# killed.
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_RECEIVED_BYTES),
    ("grpc.max_send_message_length", MAX_SENT_BYTES),
    # Clients may ping each 10 s, also during a long unary call: the default of 300 s ends their
    # connection with too_many_pings. Those who ping in floods shall have just that.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.keepalive_permit_without_calls", 1),
    # Ping clients too: one that died without a word still holds a generation. The default is 2 h.
    # While nobody waits for data from them it is the ping's own timeout that counts, of 60 s.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    # Makes clients look the name up again, and so find new replicas. Streams outlive it by the
    # grace.
    ("grpc.max_connection_age_ms", 120_000),
    ("grpc.max_connection_age_grace_ms", 3_600_000),
    # Of one connection. More than a full queue, so that a client is refused what exceeds that, and
    # does not wait in silence for a stream of its own.
    ("grpc.max_concurrent_streams", 1024),
    # One number where core has two: between them it refuses at random.
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    # Of what a client sends and nobody reads 64 KiB a stream are kept; by measure it was megabytes.
    ("grpc.http2.bdp_probe", 0),
    # On by default: a second server would bind the same port in silence and take half the calls.
    ("grpc.so_reuseport", 0),
)

_HEALTH = "grpc.health.v1.Health"
_CHANNELZ = "grpc.channelz.v1.Channelz"

# What is left when a drain is over are health watches, which hold stop() for its grace.
_STOP_GRACE_S = 0.5


class Server:
    """A grpc.aio server with all services of this package.

    Args:
        lifecycle: what the services serve; started and drained by this server.
        request_timeout_s: the longest a request may take.
        has_reflection: whether clients may ask for the protos.
        access: who may call.
        metrics: where calls are counted.
        client_timeouts: how long calls wait for their clients.
        tracer: where their spans go.
        tls: the server's certificate; None: none, all in the clear.
        has_channelz: whether the admin port tells of connections, and of who is at their other end.
        options: of gRPC's core.
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
        options: tuple[tuple[str, int], ...] = OPTIONS,
    ) -> None:
        self._lifecycle = lifecycle
        self.identity = None if tls is None else watch_tls(tls)
        self._credentials = None if self.identity is None else server_credentials(self.identity)
        options = (*options, ("grpc.enable_channelz", int(has_channelz)))
        standard = StandardServiceInterceptor()
        self._pools = WorkPools()
        metrics = metrics or Metrics()
        metrics.preparing.set_function(lambda: self._pools.num_jobs)
        self._server = grpc.aio.server(
            options=options,
            interceptors=[
                CallInterceptor(access or Access(), metrics, self._pools, client_timeouts, tracer),
                standard,
            ],
        )
        self._admin = grpc.aio.server(options=options, interceptors=[standard])
        health_pb2_grpc.add_HealthServicer_to_server(lifecycle.health, self._admin)
        generations = GenerationCalls(lifecycle, self._pools, request_timeout_s)
        chat_service_pb2_grpc.add_ChatServiceServicer_to_server(
            ChatServicer(generations), self._server
        )
        completion_service_pb2_grpc.add_CompletionServiceServicer_to_server(
            CompletionServicer(generations), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelServicer(lifecycle, self._pools), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(lifecycle.health, self._server)
        LoadReports(lifecycle).add_to(self._server)
        if has_channelz:
            channelz.add_channelz_servicer(self._admin)
        if has_reflection:
            enable_reflection(self._server, (*SERVICE_NAMES, _HEALTH))
            enable_reflection(self._admin, (_HEALTH, _CHANNELZ) if has_channelz else (_HEALTH,))

    @property
    def num_jobs(self) -> int:
        """The number of requests that are being parsed, tokenized or compiled, or wait for it."""
        return self._pools.num_jobs

    async def start(self, host: str, port: int) -> int:
        """Listen, alive but not ready.

        Returns:
            The port, which the system chose if 0 was asked for.

        Raises:
            OSError: the address cannot be bound.
        """
        bound = _bind(self._server, host, port, self._credentials)
        await self._lifecycle.start()
        await self._server.start()
        return bound

    async def start_admin(self, host: str, port: int) -> int:
        """Listen for what operators ask, in the clear: probes have no certificates.

        Returns and raises as `start`.
        """
        bound = _bind(self._admin, host, port, None)
        await self._admin.start()
        return bound

    async def drain(self, delay_s: float, timeout_s: float) -> None:
        """Let generations finish, `timeout_s` at the most, then end what is left and stop."""
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
