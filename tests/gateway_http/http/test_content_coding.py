"""Compressed bodies: complete, damaged, and far larger without compression."""

import gzip
import tracemalloc
from collections.abc import Callable
from contextlib import suppress

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from gateway_http.http.content_coding import CODINGS, decompress
from gateway_http.protocol.error import ApiError
from tests.gateway_http.compression import COMPRESS

MAX_BYTES = 1000


def rejection(body: bytes, *codings: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        decompress(body, codings, MAX_BYTES)
    return caught.value


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("content", [b"", b"{}", b"x" * MAX_BYTES])
def test_body_is_decompressed(coding: str, content: bytes) -> None:
    assert decompress(COMPRESS[coding](content), [coding], MAX_BYTES) == content


def test_codings_are_undone_from_the_last_one() -> None:
    body = zstd.compress(gzip.compress(b"{}"))
    assert decompress(body, ["gzip", "zstd"], MAX_BYTES) == b"{}"


@pytest.mark.parametrize("coding", CODINGS)
def test_bomb_is_rejected_without_being_expanded(coding: str) -> None:
    bomb = COMPRESS[coding](bytes(100 << 20))
    tracemalloc.start()
    try:
        error = rejection(bomb, coding)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (error.status, error.body.error.code) == (413, "request_too_large")
    assert peak < 1 << 20


def test_bomb_within_a_bomb_is_rejected() -> None:
    bomb = gzip.compress(gzip.compress(bytes(10 << 20)))
    assert rejection(bomb, "gzip", "gzip").status == 413


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda body: body[:-1], "it is not complete"),
        (lambda body: body[:1], "it is not complete"),
        (lambda _: b"", "it is not complete"),
        (lambda body: body + b"{}", "there are bytes after its end"),
        (lambda body: body + body, "there are bytes after its end"),
        (lambda _: b'{"model": "m"}', "it is not valid"),
    ],
)
def test_damaged_body_is_rejected(coding: str, damage: Callable[[bytes], bytes], why: str) -> None:
    error = rejection(damage(COMPRESS[coding](b'{"model": "m"}')), coding)
    assert error.status == 400
    assert error.body.error.message == (
        f"We could not decompress the body of your request as {coding}: {why}."
    )


def test_window_of_zstd_is_bounded() -> None:
    """The sender chooses the window. This frame has one of 64 MiB."""
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 26})
    body = compressor.compress(b"{}") + compressor.flush()
    assert rejection(body, "zstd").status == 400


@given(st.binary(), st.sampled_from(sorted(CODINGS)))
def test_bytes_are_rejected_or_decompressed(body: bytes, coding: str) -> None:
    with suppress(ApiError):
        assert len(decompress(body, [coding], MAX_BYTES)) <= MAX_BYTES
