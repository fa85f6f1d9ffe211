"""A process with the bare engine in it that runs loads on itself: what our layers compare to.

`python -m bench.engine_host VARIANT full|quick` reads an `Order` a line from stdin and answers each
with an `Answer`; the first says it is ready. Nothing else is in the process, which makes it the one
to profile: `echo '{"load": "c32", "seed": 1}' | PROFILER python -m bench.engine_host chatrpc full`.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial

import msgspec
import uvloop

from bench import loads
from bench.client_engine import EngineClient
from bench.engine_wire import Answer, Order
from bench.loads import Load
from bench.ours import service_options
from bench.request import Client
from service.config import ServiceSettings
from service.engines import make_engine
from service.model import ModelLoader

Ask = Callable[[], str]
Say = Callable[[str], object]


async def serve(variant: str, table: Mapping[str, Load], ask: Ask, say: Say) -> None:
    """Start the engine as the service does, and obey until `ask` returns an empty line."""
    settings = ServiceSettings.load(service_options(variant))
    loader = ModelLoader(settings)
    engine = make_engine(settings.engine, settings.engine_settings)
    await engine.start(loader.load())
    await obey(EngineClient(engine, loader.local_model(engine).tokenizer), table, ask, say)
    await engine.stop()


async def obey(client: Client, table: Mapping[str, Load], ask: Ask, say: Say) -> None:
    """Say that it is ready, then run what is ordered."""
    say(_line(Answer()))
    while line := await asyncio.to_thread(ask):
        order = msgspec.json.decode(line, type=Order)
        load = table[order.load].warm_up if order.is_warm_up else table[order.load]
        outcome = await load.run(client, order.seed, lambda: None)
        say(_line(Answer(dict(outcome.figures), outcome.fault)))


def _line(answer: Answer) -> str:
    return msgspec.json.encode(answer).decode()


if __name__ == "__main__":
    variant, speed = sys.argv[1:]
    # Whatever libraries print goes to the log; stdout is for answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    uvloop.run(
        serve(
            variant,
            loads.standard(is_quick=speed == "quick"),
            sys.stdin.readline,
            partial(print, file=answers, flush=True),
        )
    )
