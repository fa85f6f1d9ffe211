"""Reads the request message of each call, with limits of time and of memory for all calls."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any
from weakref import WeakValueDictionary

from google.protobuf.message import DecodeError

from chatrpc_process.fairness.capacity import SharedCapacity
from service.domain.engine import Caller
from service.domain.timeouts import ClientTimeouts
from service.errors import DeadlinePassed, InvalidField, PreparationFull
from service.rpc.calls.caller import current_caller, note_received
from service.rpc.calls.context import Context
from service.rpc.calls.message_elements import check_num_elements
from service.rpc.calls.rpcs import Rpc
from service.rpc.calls.work_pools import WorkPools

# Maximum size in bytes of the messages of all calls together. A parsed message takes a few times
# its size in memory, until its call ends.
MAX_BYTES_IN_PROGRESS = 256 << 20
# Maximum number of messages of one caller that are read at once. Compressed messages arrive fast.
_MAX_READS_OF_CALLER = 16
# Larger messages are counted and parsed on a thread.
_SMALL_BYTES = 64 << 10


class MessageReader:
    """Reads the messages of all calls.

    The total size of the messages in progress is limited, and callers share it (`SharedCapacity`).
    The number of messages that are read at once for a caller with a name is limited; further ones
    wait.

    Args:
        timeouts: `receive_s` is the maximum time in which a message must arrive.
        max_bytes: Maximum size of all messages in progress together, in bytes.
    """

    def __init__(
        self, pools: WorkPools, timeouts: ClientTimeouts, max_bytes: int = MAX_BYTES_IN_PROGRESS
    ) -> None:
        self._pools = pools
        self._timeouts = timeouts
        self._in_progress = SharedCapacity(max_bytes)
        self._reading: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def message(self, rpc: Rpc, context: Context) -> AsyncIterator[Any]:
        """Yield the request message of a call. It counts as in progress while in the context.

        Raises:
            InvalidField: The message is missing, has too many elements, or cannot be parsed.
            DeadlinePassed: The message took too long to arrive.
            PreparationFull: Too many large messages are in progress.
        """
        caller = current_caller()
        async with self._place(caller):
            data = await self._read(context)
        num_bytes = len(data)
        if not self._in_progress.has_room(caller.name, num_bytes, caller.weight):
            raise PreparationFull
        self._in_progress.take(caller.name, num_bytes)
        note_received(num_bytes)
        try:
            if num_bytes <= _SMALL_BYTES:
                message = _parse(rpc, data)
            else:
                message = await self._pools.text(_parse, rpc, data)
            del data
            yield message
        finally:
            self._in_progress.release(caller.name, num_bytes)

    def _place(self, caller: Caller) -> AbstractAsyncContextManager[None]:
        if not caller.name:
            return nullcontext()
        return self._reading.setdefault(caller.name, asyncio.Semaphore(_MAX_READS_OF_CALLER))

    async def _read(self, context: Context) -> bytes:
        """Return the bytes of the request.

        Raises:
            InvalidField: There is no request.
            DeadlinePassed: It took too long to arrive.
        """
        try:
            async with asyncio.timeout(self._timeouts.receive_s):
                request = await context.read()
        except TimeoutError:
            raise DeadlinePassed("The request took too long to arrive.") from None
        if not isinstance(request, bytes):
            raise InvalidField("request", "There is no request.")
        return request


def parse(deserialize: Callable[[bytes], Any], request: bytes) -> Any:
    """Return the message that the bytes `request` encode.

    Raises:
        InvalidField: The bytes are not a valid message.
    """
    try:
        return deserialize(request)
    except DecodeError as error:
        raise InvalidField("request", "The request is not a valid protobuf message.") from error


def _parse(rpc: Rpc, request: bytes) -> Any:
    check_num_elements(request, rpc.request_type.DESCRIPTOR)
    return parse(rpc.request_type.FromString, request)
