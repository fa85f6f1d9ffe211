"""Short constructors of requests for tests of the engine."""

from collections.abc import Sequence

from service.domain.engine import Caller, Request
from service.domain.sampling import SamplingParams

_ANONYMOUS = Caller()


def make_request(
    prompt: int | Sequence[int] = 4,
    max_tokens: int | None = 4,
    *,
    stop_token_ids: frozenset[int] = frozenset(),
    deadline: float | None = None,
    cache_salt: str = "",
    n: int = 1,
    priority: int = 0,
    caller: Caller = _ANONYMOUS,
) -> Request:
    """Return a greedy request. If `prompt` is a number, the prompt has this many tokens."""
    token_ids = tuple(range(1, prompt + 1)) if isinstance(prompt, int) else tuple(prompt)
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return Request(
        token_ids, sampling, stop_token_ids, deadline, cache_salt, n, priority, caller=caller
    )
