"""Parses server-sent events from the pieces that a socket received, with their times."""

from collections.abc import Iterable, Iterator


def events(pieces: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """Yield the data of each event with the time at which it was complete.

    Comments, other fields and `[DONE]` are left out.
    """
    pending = b""
    for time_s, piece in pieces:
        *complete, pending = (pending + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in complete:
            if (data := _data(event)) and data != b"[DONE]":
                yield time_s, data


def _data(event: bytes) -> bytes:
    lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line.removeprefix(b"data:").removeprefix(b" ") for line in lines)
