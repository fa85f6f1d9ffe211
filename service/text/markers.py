"""Markers in text that comes in pieces."""


def overlap(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the beginning of `marker`, not all of it."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
