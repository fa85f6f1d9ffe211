"""Decides which hosted models to load and to unload, so that they fit into a budget of memory.

Requests for models that are not loaded are served in the order of their arrival. If there is no
room for the model of the oldest request, the least recently used models are unloaded. A model with
running requests is unloaded after they have ended; meanwhile, new requests for it wait.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """The state of a hosted model's process."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A hosted model at one time. Times are in seconds of one clock.

    Attributes:
        memory_bytes: The memory that it uses; an estimate if it has not been loaded yet.
        num_calls: Number of running requests.
        waiting_since_s: Arrival of its oldest waiting request; None if none waits.
        last_used_s: The last time at which a request ended, or at which it was loaded.
        idle_timeout_s: Time without requests after which it is unloaded.
    """

    name: str
    state: State
    memory_bytes: int
    num_calls: int = 0
    waiting_since_s: float | None = None
    last_used_s: float = 0.0
    idle_timeout_s: float = math.inf

    @property
    def is_idle(self) -> bool:
        """True if it is loaded and no request runs on it."""
        return self.state is State.LOADED and self.num_calls == 0

    @property
    def expires_s(self) -> float:
        """The time at which it is unloaded if no request arrives; infinity if it never is."""
        if not self.is_idle or self.waiting_since_s is not None:
            return math.inf
        return self.last_used_s + self.idle_timeout_s


@dataclass(frozen=True, slots=True)
class Changes:
    """The names of models to change.

    Attributes:
        load: Models to start loading now.
        unload: Idle models to unload now.
        drain: Models with running requests, which are to be unloaded after these. New requests for
            them wait.
    """

    load: tuple[str, ...] = ()
    unload: tuple[str, ...] = ()
    drain: frozenset[str] = frozenset()


def decide(models: Sequence[Snapshot], budget_bytes: float, now_s: float) -> Changes:
    """Return what to load and to unload at `now_s`.

    The memory of all models that are not unloaded stays within the budget, except that one model
    may be loaded by itself, whatever its size, and that the memory of loaded models may grow.

    Args:
        models: All hosted models.
        budget_bytes: The budget; infinity if there is none.
        now_s: The time.
    """
    expired = [model for model in models if model.expires_s <= now_s]
    used_bytes = sum(each.memory_bytes for each in models if each.state is not State.UNLOADED)
    is_empty = all(each.state is State.UNLOADED for each in models)
    load: list[str] = []
    blocked = None
    for model in _waiting(models):
        if used_bytes + model.memory_bytes > budget_bytes and not is_empty:
            # Later ones wait too: they would take the memory that is freed for it.
            blocked = model
            break
        load.append(model.name)
        used_bytes += model.memory_bytes
        is_empty = False
    lacking_bytes = used_bytes - budget_bytes
    if blocked is not None:
        lacking_bytes += blocked.memory_bytes
    victims = _victims(models, expired, lacking_bytes, may_drain=blocked is not None)
    unload = dict.fromkeys(model.name for model in (*expired, *victims) if model.is_idle)
    drain = frozenset(model.name for model in victims if not model.is_idle)
    return Changes(tuple(load), tuple(unload), drain)


def _waiting(models: Iterable[Snapshot]) -> list[Snapshot]:
    """Return the unloaded models that requests wait for, that of the oldest request first."""
    arrivals = [
        (model.waiting_since_s, model.name, model)
        for model in models
        if model.state is State.UNLOADED and model.waiting_since_s is not None
    ]
    return [model for *_, model in sorted(arrivals, key=lambda arrival: arrival[:2])]


def _victims(
    models: Sequence[Snapshot],
    expired: Sequence[Snapshot],
    lacking_bytes: float,
    *,
    may_drain: bool,
) -> list[Snapshot]:
    """Return the loaded models to unload, so that `lacking_bytes` become free.

    Idle models come first, and among them those that were used the longest time ago.

    Args:
        models: All hosted models.
        expired: Those that are unloaded anyway.
        lacking_bytes: The number of bytes to free.
        may_drain: True if the memory is needed by another model. Otherwise loaded models have
            outgrown the budget: then only idle ones are unloaded, and the last used one stays.
    """
    loaded = [each for each in models if each.state is State.LOADED and each not in expired]
    candidates = sorted(loaded, key=lambda each: (not each.is_idle, each.last_used_s, each.name))
    if not may_drain:
        last_used = max(loaded, key=lambda each: each.last_used_s, default=None)
        candidates = [each for each in candidates if each.is_idle and each is not last_used]
    ending = [each for each in models if each.state is State.UNLOADING]
    lacking_bytes -= sum(each.memory_bytes for each in (*ending, *expired))
    victims = []
    for model in candidates:
        if lacking_bytes <= 0:
            break
        victims.append(model)
        lacking_bytes -= model.memory_bytes
    return victims
