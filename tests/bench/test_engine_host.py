"""The process with the bare engine: its orders and its replies."""

import msgspec

from bench import loads
from bench.client_engine import EngineClient
from bench.engine_host import obey
from bench.engine_wire import Answer, Order
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import ByteTokenizer


async def test_engine_host_runs_the_ordered_load() -> None:
    engine = FakeEngine()
    engine.answer("abc")
    table: dict[str, loads.Load] = {"c1": loads.Closed("c1", "", 1, 4, 5, 3)}
    orders = [Order("c1", seed=1), Order("c1", seed=1, is_warm_up=True)]
    lines = iter([*(msgspec.json.encode(order).decode() for order in orders), ""])
    said: list[str] = []
    client = EngineClient(engine, ByteTokenizer())
    await obey(client, table, lambda: next(lines), said.append)
    ready, measured, warm_up = (msgspec.json.decode(line, type=Answer) for line in said)
    assert ready == Answer()
    assert measured.fault is None
    assert measured.figures["num_output_tokens"] == 12
    assert warm_up.fault == "1 of 1 requests: 3 tokens instead of 8"  # the fake's output is fixed
    assert len(engine.requests) == 5
