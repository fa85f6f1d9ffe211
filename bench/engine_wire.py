"""What goes to and from a process of `bench.engine_host`, a line of JSON each."""

import msgspec


class Order(msgspec.Struct):
    """Run this load."""

    load: str
    seed: int
    is_warm_up: bool = False


class Answer(msgspec.Struct):
    """What came of it; the first one, of nothing, says that the engine is ready."""

    figures: dict[str, float] = {}
    fault: str | None = None
