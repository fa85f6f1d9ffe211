"""The headers of a request about its body: its content type and its codings."""

from email.message import Message

from starlette.datastructures import Headers

from gateway_http.http.content_coding import CODINGS, MAX_CODINGS
from gateway_http.protocol.error import ApiError

# JSON is UTF-8 (RFC 8259, section 8.1), of which ASCII is a part.
_CHARSETS = {"utf-8", "utf8", "us-ascii", "ascii"}
_MAX_QUOTED = 100


def check_content_type(headers: Headers) -> None:
    """Raise ApiError if the content type is not JSON, or its charset is not UTF-8."""
    content_type = headers.get("content-type", "")
    media_type, _, parameters = content_type.partition(";")
    if media_type.strip().lower() != "application/json":
        sent = f"'{content_type[:_MAX_QUOTED]}'" if content_type else "none"
        raise _unsupported(
            f"Unsupported content type: {sent}. Send the header 'Content-Type: application/json'; "
            "with curl, -H 'Content-Type: application/json'."
        )
    charset = _charset(content_type) if parameters else "utf-8"
    if charset not in _CHARSETS:
        raise _unsupported(
            f"Unsupported charset: '{charset[:_MAX_QUOTED]}'. JSON is sent as UTF-8 (RFC 8259)."
        )


def content_codings(headers: Headers) -> list[str]:
    """Return the codings of the body in the order in which they were applied.

    Raises:
        ApiError: A coding is not supported, or there are more than `MAX_CODINGS`.
    """
    sent = ",".join(headers.getlist("content-encoding"))
    names = [name for part in sent.split(",") if (name := part.strip().lower())]
    codings = [name for name in names if name != "identity"]
    unknown = next((name for name in codings if name not in CODINGS), None)
    if unknown is not None:
        raise _unsupported_coding(
            f"Unsupported content encoding: '{unknown[:_MAX_QUOTED]}'. "
            f"Send the body as it is, or with one of: {', '.join(CODINGS)}."
        )
    if len(codings) > MAX_CODINGS:
        raise _unsupported_coding(f"The body has more than {MAX_CODINGS} content encodings.")
    return codings


def _charset(content_type: str) -> str:
    """Return the charset parameter in lower case, or `utf-8` if there is none."""
    message = Message()
    message["content-type"] = content_type
    return (message.get_content_charset("utf-8") or "").strip()


def _unsupported(message: str) -> ApiError:
    return ApiError(415, message, code="unsupported_content_type")


def _unsupported_coding(message: str) -> ApiError:
    """Return the error for an unsupported coding, with the header that the RFC requires.

    https://www.rfc-editor.org/rfc/rfc9110#section-15.5.16
    """
    return ApiError(
        415,
        message,
        code="unsupported_content_encoding",
        headers={"accept-encoding": ", ".join(CODINGS)},
    )
