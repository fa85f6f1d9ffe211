"""The messages to and from a process of `bench.engine_host`, one line of JSON each."""

import msgspec


class Order(msgspec.Struct):
    """A command to run a load."""

    load: str
    seed: int
    is_warm_up: bool = False


class Answer(msgspec.Struct):
    """The outcome of an order. The first one belongs to no order and reports readiness."""

    figures: dict[str, float] = {}
    fault: str | None = None
