"""The secret of an API key. It is sent with every call; only its hash is stored."""

import hashlib
import secrets
from collections.abc import Iterable

_BEARER = "bearer "


def new_secret() -> str:
    """Return a new secret: a prefix that secret scanners can find, and 256 random bits."""
    return f"sk-chatrpc-{secrets.token_urlsafe(32)}"


def digest_of(secret: str) -> str:
    """Return the SHA-256 of a secret in hexadecimal digits, as in the key file."""
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


def sent_secret(headers: Iterable[tuple[str, str | bytes]]) -> str | None:
    """Return the secret in a call's metadata or a request's headers, or None if there is none.

    The first `authorization: Bearer SECRET` or `x-api-key: SECRET` is used.

    Args:
        headers: Pairs of a name in lower case and a value.
    """
    for name, value in headers:
        if isinstance(value, str):
            if name == "authorization" and value[: len(_BEARER)].lower() == _BEARER:
                return value[len(_BEARER) :].strip()
            if name == "x-api-key":
                return value.strip()
    return None
