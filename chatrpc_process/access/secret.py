"""The secret half of an API key: made once, sent with every call, kept by nobody but its owner."""

import hashlib
import secrets
from collections.abc import Iterable

_BEARER = "bearer "


def new_secret() -> str:
    """A secret that nobody guesses: 256 random bits behind a prefix that scanners can look for."""
    return f"sk-chatrpc-{secrets.token_urlsafe(32)}"


def digest_of(secret: str) -> str:
    """What stands in a file for the secret."""
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


def sent_secret(headers: Iterable[tuple[str, str | bytes]]) -> str | None:
    """The secret that a call's metadata or a request's headers, in lower case, show; None if none.

    It stands as `authorization: Bearer SECRET`, or as `x-api-key: SECRET`; the first counts.
    """
    for name, value in headers:
        if isinstance(value, str):
            if name == "authorization" and value[: len(_BEARER)].lower() == _BEARER:
                return value[len(_BEARER) :].strip()
            if name == "x-api-key":
                return value.strip()
    return None
