"""A process with the bare engine in it that runs loads on itself: what our layers compare to.

It reads an `Order` a line from stdin and answers each with an `Answer`; the first says it is
ready.
"""

import asyncio
import os
import sys
from typing import TextIO

import msgspec
import uvloop

from bench import loads
from bench.client_engine import EngineClient
from bench.engine_wire import Answer, Order
from bench.ours import service_options
from service.config import ServiceSettings
from service.engine.async_engine import AsyncEngine
from service.model import ModelLoader


async def main(variant: str, *, is_quick: bool, answers: TextIO) -> None:
    settings = ServiceSettings.load(service_options(variant))
    loader = ModelLoader(settings)
    engine = AsyncEngine(
        loader.load, max_num_seqs=settings.max_num_seqs, max_queue_size=settings.max_queue_size
    )
    await engine.start()
    client = EngineClient(engine, loader.served(engine).tokenizer)
    table = loads.standard(is_quick=is_quick)

    def say(answer: Answer) -> None:
        print(msgspec.json.encode(answer).decode(), file=answers, flush=True)

    say(Answer())
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = msgspec.json.decode(line, type=Order)
        load = table[order.load].warm_up if order.is_warm_up else table[order.load]
        outcome = await load.run(client, order.seed, lambda: None)
        say(Answer(dict(outcome.figures), outcome.fault))
    await engine.stop()


if __name__ == "__main__":
    variant, quick = sys.argv[1:]
    # Whatever libraries print goes to the log; stdout is for answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    uvloop.run(main(variant, is_quick=quick == "quick", answers=answers))
