"""Checks the URLs of upstreams. It is separate from them, because the options need it."""

from urllib.parse import urlsplit


def api_url(url: str) -> str:
    """Return the URL of an API, which has `/v1` unless `url` has a path.

    Raises:
        ValueError: It is no URL of HTTP, or it has a user, a query or a fragment.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not a URL such as https://host:port/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a URL has neither a user nor a query; the key belongs into a file")
    _ = parts.port  # raises ValueError if it is no number
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"
