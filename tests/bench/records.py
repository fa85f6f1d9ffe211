"""Makes records of valid responses with chosen times."""

from typing import Any

from bench.request import Record


def record(*arrivals_s: float, due_s: float = 0.0, **fields: Any) -> Record:
    """Return a record with one token per arrival, unless `fields` differ."""
    num_tokens = fields.pop("num_tokens", len(arrivals_s))
    return Record(
        due_s=due_s,
        arrivals_s=arrivals_s,
        num_requested=num_tokens,
        num_output_tokens=num_tokens,
        **fields,
    )
