"""The events of a server-sent event stream."""

import json
from typing import Any


def events(text: str) -> list[Any]:
    """Return the data of a stream's events, with `[DONE]` as text and without comments."""
    data = [event.removeprefix("data: ") for event in text.split("\n\n") if event[:5] == "data:"]
    return [event if event == "[DONE]" else json.loads(event) for event in data]
