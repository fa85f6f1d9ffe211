"""A process that runs loads on a bare engine inside it, to measure the cost of our layers.

`python -m bench.engine_host SIZE OPTION...` starts the engine with options of our service, and runs
loads of a size: see `bench.loads.standard`. It reads one `Order` per line from stdin and replies to
each with an `Answer`. The first `Answer` reports that it is ready. The process does nothing else,
so it is suited for profiling: `echo '{"load": "c32", "seed": 1}' | PROFILER python -m
bench.engine_host full`.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec
import uvloop

from bench import loads
from bench.client_engine import EngineClient
from bench.engine_wire import Answer, Order
from bench.loads import Load
from bench.request import Client
from service.config import ServiceSettings
from service.engines import make_engine
from service.model import ModelLoader

Ask = Callable[[], str]
Reply = Callable[[str], object]


async def serve(options: Sequence[str], table: Mapping[str, Load], ask: Ask, reply: Reply) -> None:
    """Start the engine as the service does, and run orders until `ask` returns an empty line."""
    settings = ServiceSettings.load(list(options))
    engine = make_engine(settings.engine, settings.engine_settings)
    loader = ModelLoader(settings, reads_gguf=engine.capabilities.reads_gguf)
    await engine.start(loader.load())
    await obey(EngineClient(engine, loader.local_model(engine).tokenizer), table, ask, reply)
    await engine.stop()


async def obey(client: Client, table: Mapping[str, Load], ask: Ask, reply: Reply) -> None:
    """Report that the engine is ready, then run orders."""
    reply(_line(Answer()))
    while line := await asyncio.to_thread(ask):
        order = msgspec.json.decode(line, type=Order)
        load = table[order.load].warm_up if order.is_warm_up else table[order.load]
        outcome = await load.run(client, order.seed, lambda: None)
        reply(_line(Answer(dict(outcome.figures), outcome.fault)))


def _line(answer: Answer) -> str:
    return msgspec.json.encode(answer).decode()


if __name__ == "__main__":
    size, *options = sys.argv[1:]
    # Output of libraries goes to the log. Only replies go to stdout.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    uvloop.run(
        serve(
            options,
            loads.standard(size),
            sys.stdin.readline,
            partial(print, file=replies, flush=True),
        )
    )
