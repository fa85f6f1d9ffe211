"""Converts inputs that are texts or token ids."""

from collections.abc import Sequence

from gateway_http.protocol.error import InvalidRequest


def texts_or_token_ids(
    value: str | Sequence[str | int | list[int]], param: str
) -> tuple[list[str], list[list[int]]]:
    """Return the texts of an input and its lists of token ids. One of the two is empty.

    Args:
        value: A text, texts, the token ids of one text, or those of several.
        param: The parameter that has the value.

    Raises:
        InvalidRequest: The value mixes texts, token ids and lists of them.
    """
    if isinstance(value, str):
        return [value], []
    texts = [item for item in value if isinstance(item, str)]
    ids = [item for item in value if isinstance(item, int)]
    lists = [item for item in value if isinstance(item, list)]
    if len(value) not in {len(texts), len(ids), len(lists)}:
        raise InvalidRequest(
            f"Invalid '{param}': send strings, token ids or lists of token ids, not a mixture.",
            param,
            "invalid_type",
        )
    return texts, [ids] if ids else lists


def is_single(value: str | Sequence[str | int | list[int]]) -> bool:
    """Return whether a value is one text, or the token ids of one. It must not be empty."""
    return isinstance(value, str) or isinstance(value[0], int)
