"""JSON values that the proto carries as text."""

from typing import Any

import msgspec


def raw_text(value: msgspec.Raw) -> str:
    """Return JSON as the client wrote it, or "" if it is absent or null."""
    text = bytes(value).decode()
    return "" if text == "null" else text


def json_text(value: dict[str, Any] | None) -> str:
    """Return an object as JSON, with keys in their order and all digits. Return "" for None."""
    return "" if value is None else msgspec.json.encode(value).decode()
