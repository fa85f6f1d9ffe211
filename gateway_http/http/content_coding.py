"""Decompression of request bodies: https://www.rfc-editor.org/rfc/rfc9110#section-8.4."""

import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway_http.protocol.error import ApiError, InvalidRequest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Maximum number of codings of one body. HTTP allows any number, but a second one saves nothing.
MAX_CODINGS = 2
# 8 MiB, the maximum that senders may use: https://www.rfc-editor.org/rfc/rfc9659.
_ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 23}


class _Decompressor(Protocol):
    """The interface that the decompressors of all codings share."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _gzip() -> _Decompressor:
    return zlib.decompressobj(16 + zlib.MAX_WBITS)


def _zstd() -> _Decompressor:
    return zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)


# The decompressors by their names in headers. `deflate` is the zlib format, not raw deflate.
CODINGS: dict[str, Callable[[], _Decompressor]] = {
    "gzip": _gzip,
    "deflate": zlib.decompressobj,
    "zstd": _zstd,
    "x-gzip": _gzip,  # an old name of gzip
}


def decompress(body: bytes, codings: Sequence[str], max_bytes: int) -> bytes:
    """Return the body without its codings.

    Decompression uses at most `max_bytes` of memory, even if the body expands to more.

    Args:
        codings: Names in `CODINGS`, in the order in which they were applied.
        max_bytes: Maximum size of the result of each coding, in bytes.

    Raises:
        ApiError: A result exceeds `max_bytes`, or the body is not one complete stream of its
            coding.
    """
    for coding in reversed(codings):
        body = _decompress(body, coding, max_bytes)
    return body


def _decompress(body: bytes, coding: str, max_bytes: int) -> bytes:
    decompressor = CODINGS[coding]()
    try:
        content = decompressor.decompress(body, max_bytes + 1)
    except (zlib.error, zstd.ZstdError):
        raise _damaged(coding, "it is not valid") from None
    if len(content) > max_bytes:
        raise too_large(max_bytes)
    if not decompressor.eof:
        raise _damaged(coding, "it is not complete")
    if decompressor.unused_data:
        raise _damaged(coding, "there are bytes after its end")
    return content


def too_large(max_bytes: int) -> ApiError:
    """Return the error for a body of more than `max_bytes` bytes."""
    return ApiError(
        413, f"The body is too large: at most {max_bytes} bytes.", code="request_too_large"
    )


def _damaged(coding: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"We could not decompress the body of your request as {coding}: {why}.")
