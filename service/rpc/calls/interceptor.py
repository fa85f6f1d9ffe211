"""The outermost interceptor of every call to a chatrpc service: request id, errors, log line."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, closing
from typing import Any, NoReturn

import grpc
import structlog
from google.rpc import status_pb2

from chatrpc.v1.limits import REQUEST_ID_PATTERN
from chatrpc_process.logs.limited import LimitedLog
from chatrpc_process.tracing.api import OFF, Tracer, log_fields
from service.deadline import WaitLimit
from service.domain.timeouts import ClientTimeouts
from service.errors import ChatrpcError, InvalidField
from service.metrics import Metrics
from service.rpc.calls import status
from service.rpc.calls.authorization import Access
from service.rpc.calls.caller import acting_for, received_bytes
from service.rpc.calls.context import Context, Handler
from service.rpc.calls.message_reader import MessageReader
from service.rpc.calls.rejection_pace import RejectionPace
from service.rpc.calls.rpcs import BY_PATH, Rpc
from service.rpc.calls.telemetry import CallTelemetry
from service.rpc.calls.work_pools import WorkPools

REQUEST_ID_KEY = "x-request-id"

# Services that need no key.
_OPEN = ("/grpc.health.v1.Health/", "/xds.service.orca.v3.OpenRcaService/")

_ABORT_TIMEOUT_S = 5

_REQUEST_ID = re.compile(REQUEST_ID_PATTERN)

log = structlog.get_logger(__name__)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Authenticates each call, turns its errors into statuses, and counts and logs its end.

    Calls to other services are only authenticated. They are not logged: probes would flood the log.
    Health checks and load reports need no key, because kubelets and gRPC's own balancers have none.

    Args:
        rpcs: The RPCs whose calls are served, by their paths.
    """

    def __init__(
        self,
        access: Access,
        metrics: Metrics,
        pools: WorkPools,
        client_timeouts: ClientTimeouts | None = None,
        tracer: Tracer = OFF,
        rpcs: Mapping[str, Rpc] = BY_PATH,
    ) -> None:
        self._rpcs = rpcs
        self._access = access
        self._metrics = metrics
        self._timeouts = client_timeouts or ClientTimeouts()
        self._rejections = RejectionPace()
        self._messages = MessageReader(pools, self._timeouts)
        self._tracer = tracer
        self._limited_log = LimitedLog()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            self._log_rejected(method, "UNIMPLEMENTED", kind="")
            return None
        if method.startswith(_OPEN):
            return handler
        rpc = self._rpcs.get(method)
        if rpc is None:
            return self._with_key(handler, handler_call_details)
        # Requests are read and parsed here. gRPC itself would wait for a request before the call is
        # authenticated and without a time limit, and would fail with UNKNOWN if it cannot be
        # parsed. On the wire, a stream of one request is the same as one request.
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._stream(handler, rpc), None, handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(
            self._unary(handler, rpc), None, handler.response_serializer
        )

    def _with_key(self, handler: Any, details: grpc.HandlerCallDetails) -> Handler:
        try:
            self._access.authenticate(details.invocation_metadata or ())
        except ChatrpcError as error:
            proto = status.status(error, "")
            self._log_rejected(details.method, status.reason(proto), kind=details.method)

            async def reject(_: Any, context: Context) -> None:
                await abort(context, proto, ())

            return grpc.stream_stream_rpc_method_handler(reject)
        return handler  # type: ignore[no-any-return]

    def _unary(self, handler: Any, rpc: Rpc) -> Any:
        async def call(_: Any, context: Context) -> Any:
            async with (
                _call(rpc, context, self._metrics, self._tracer, self._limited_log) as counting,
                self._message(rpc, context, counting) as message,
            ):
                response = await handler.unary_unary(message, context)
                if rpc.input_field:
                    counting.note_pooling(response)
                else:
                    counting.note_output(rpc.output_of(response))
                return response

        return call

    def _stream(self, handler: Any, rpc: Rpc) -> Any:
        async def call(_: Any, context: Context) -> None:
            async with (
                _call(rpc, context, self._metrics, self._tracer, self._limited_log) as counting,
                self._message(rpc, context, counting) as message,
                aclosing(handler.unary_stream(message, context)) as responses,
            ):
                with closing(WaitLimit("The response was not read in time.")) as limit:
                    async for response in responses:
                        counting.note_output(rpc.output_of(response))
                        # The calls with an output of the same engine step reach this line before
                        # the first of them writes. Writes without work between them reach the
                        # gateway together, which takes a quarter less CPU time in both processes.
                        await asyncio.sleep(0)
                        with limit.within(self._timeouts.write_s):
                            await context.write(response)

        return call

    @asynccontextmanager
    async def _message(
        self, rpc: Rpc, context: Context, counting: CallTelemetry
    ) -> AsyncIterator[Any]:
        """Yield the request message of an authorized call."""
        name = ""  # until it is known
        try:
            identity = self._access.authenticate(context.invocation_metadata() or ())
            name = identity.caller.name
            with acting_for(identity.caller):
                async with self._messages.message(rpc, context) as message:
                    counting.note_request(message)
                    with self._access.use(identity, rpc, message, received_bytes(), counting):
                        yield message
        except ChatrpcError:
            # The call has released everything by now.
            await asyncio.sleep(self._rejections.delay_s(name))
            raise

    def _log_rejected(self, method: str, reason: str, kind: str) -> None:
        """Log a call that is rejected before it reaches a service, at a limited rate.

        The rate is limited because clients can make any number of these calls.
        """
        fields = {"method": method, "reason": reason}
        self._limited_log.write(log.info, "request_rejected", kind=(reason, kind), **fields)


@asynccontextmanager
async def _call(
    rpc: Rpc, context: Context, metrics: Metrics, tracer: Tracer, limited_log: LimitedLog
) -> AsyncIterator[CallTelemetry]:
    request_id = _request_id(context)
    metadata = context.invocation_metadata() or ()
    counting = CallTelemetry(metrics, tracer, rpc, metadata, context.peer())
    structlog.contextvars.bind_contextvars(request_id=request_id, **log_fields(counting.span))
    context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
    outcome = code = "CANCELLED"  # replaced if the call is not cancelled
    field = ""
    log.debug("request_started", method=rpc.path)
    try:
        yield counting
        outcome = code = "OK"
    except Exception as error:  # not CancelledError and GeneratorExit
        if isinstance(error, InvalidField):
            field = error.field = rpc.field_of(error.field)
        proto = status.status(error, request_id)
        outcome, code = status.reason(proto), status.code(proto).name
        if outcome == "INTERNAL":
            log.exception("unexpected_error", method=rpc.path)
        trailing = (
            (REQUEST_ID_KEY, request_id),
            *status.retry_pushback(error),
            *status.tokens_computed(counting.num_tokens),
        )
        await abort(context, proto, trailing)
    finally:
        if code == "CANCELLED" and context.time_remaining() == 0:
            outcome = "DEADLINE"  # gRPC cancels a call at the caller's deadline
        fields = counting.log_fields()
        counting.end(code, outcome)
        fields |= {"method": rpc.path, "code": code}
        if code != "OK":
            fields["reason"] = outcome
        if field:
            fields["field"] = field
        if code == "UNAUTHENTICATED":  # any client can make any number of these
            limited_log.write(log.info, "request_finished", kind=(rpc.path, code), **fields)
        elif not (rpc.is_polled and code == "OK"):
            log.info("request_finished", **fields)


async def abort(context: Context, proto: status_pb2.Status, metadata: status.Metadata) -> NoReturn:
    """End the call with a status. If the call has already ended, the status is not sent.

    The status is sent after everything written before. If the client does not read that, gRPC sends
    the status later. The call's resources are freed before.
    """
    try:
        async with asyncio.timeout(_ABORT_TIMEOUT_S):
            await context.abort(
                status.code(proto), proto.message, metadata + status.trailing_metadata(proto)
            )
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # mostly because the deadline passed meanwhile
        raise asyncio.CancelledError from error
    raise AssertionError("abort raises")


def _request_id(context: Context) -> str:
    """Return the caller's request id if it is short and printable, else a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex
