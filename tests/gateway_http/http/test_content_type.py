"""Headers that describe a body: its type, charset and codings."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from gateway_http.http.content_type import check_content_type, content_codings
from gateway_http.protocol.error import ApiError


def headers(**fields: str) -> Headers:
    return Headers({name.replace("_", "-"): value for name, value in fields.items()})


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON ; charset=UTF-8",
        'application/json;charset="utf-8"',
        "application/json; charset=us-ascii",
        "application/json; profile=x",
        "application/json;",
    ],
)
def test_json_in_utf_8_is_accepted(content_type: str) -> None:
    check_content_type(headers(content_type=content_type))


@pytest.mark.parametrize(
    "charset", ["utf-16", "UTF-16LE", "utf-32", "iso-8859-1", "cp1252", "x" * 999]
)
def test_other_charsets_are_rejected_by_name(charset: str) -> None:
    with pytest.raises(ApiError) as caught:
        check_content_type(headers(content_type=f"application/json; charset={charset}"))
    assert caught.value.status == 415
    error = caught.value.body.error
    assert error.code == "unsupported_content_type"
    assert f"'{charset.lower()[:100]}'" in error.message


@pytest.mark.parametrize(
    ("sent", "codings"),
    [
        ("", []),
        ("identity", []),
        ("gzip", ["gzip"]),
        ("GZip, , identity , zstd", ["gzip", "zstd"]),
        ("x-gzip", ["x-gzip"]),
        ("deflate", ["deflate"]),
    ],
)
def test_codings_are_read_in_their_order(sent: str, codings: list[str]) -> None:
    assert content_codings(headers(content_encoding=sent)) == codings


def test_codings_of_several_headers_are_one_list() -> None:
    raw = [(b"content-encoding", b"gzip"), (b"content-encoding", b"zstd")]
    assert content_codings(Headers(raw=raw)) == ["gzip", "zstd"]


@pytest.mark.parametrize("sent", ["br", "gzip, br", "compress", "gzip;q=1", "utf-8"])
def test_unsupported_coding_is_rejected_by_name(sent: str) -> None:
    with pytest.raises(ApiError) as caught:
        content_codings(headers(content_encoding=sent))
    error = caught.value
    assert (error.status, error.body.error.code) == (415, "unsupported_content_encoding")
    assert f"'{sent.rpartition(', ')[2]}'" in error.body.error.message
    assert error.headers["accept-encoding"] == "gzip, deflate, zstd, x-gzip"


def test_number_of_codings_is_bounded() -> None:
    with pytest.raises(ApiError) as caught:
        content_codings(headers(content_encoding="gzip, gzip, gzip"))
    assert caught.value.status == 415


# The characters of a header's value: https://www.rfc-editor.org/rfc/rfc9110#section-5.5.
VALUES = st.text(st.characters(max_codepoint=0xFF, exclude_characters="\r\n\0"), max_size=40)


@given(st.sampled_from(["", "application/json;", "application/json; charset"]), VALUES, VALUES)
def test_headers_are_accepted_or_rejected(start: str, rest: str, coding: str) -> None:
    raw = [(b"content-type", (start + rest).encode("latin-1"))]
    with suppress(ApiError):
        check_content_type(Headers(raw=raw))
    with suppress(ApiError):
        content_codings(Headers(raw=[(b"content-encoding", coding.encode("latin-1"))]))
