"""The measured loads. Each is a set of requests and a way to send them.

Responses are greedy, streamed and of a fixed length; the model's end of turn is ignored. Prompts
are random words drawn from a seed, so that no two share more than the template's beginning. Every
server of a round gets the same prompts, and every round has new ones.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from bench import metrics
from bench.loadgen import OnDone, closed_loop, exchange, open_loop, poisson
from bench.metrics import Outcome
from bench.request import Client, Record, Request, Transcript, ask
from bench.words import sentences, words

# A closed loop starts no request after this time in seconds, so that the load ends even on a slow
# server.
MAX_START_S = 20


class Load(Protocol):
    """A named load. `warm_up` is a smaller load, which is sent first and not measured."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def num_requests(self) -> int: ...

    @property
    def warm_up(self) -> "Load": ...

    async def run(self, client: Client, seed: int, on_done: OnDone) -> Outcome: ...


@dataclass(frozen=True, slots=True)
class Closed:
    """A load of `num_clients` clients. Each sends a request when its last response is complete."""

    name: str
    title: str
    num_clients: int
    num_requests: int
    num_words: int
    num_tokens: int

    @property
    def warm_up(self) -> "Closed":
        return replace(self, num_requests=self.num_clients, num_tokens=8)

    async def run(self, client: Client, seed: int, on_done: OnDone) -> Outcome:
        requests = random_requests(self.num_requests, self.num_words, self.num_tokens, seed)
        transcripts = await closed_loop(
            client, requests, self.num_clients, max_start_s=MAX_START_S, on_done=on_done
        )
        return _outcome(client, transcripts, {"num_clients": float(self.num_clients)})


@dataclass(frozen=True, slots=True)
class Open:
    """Requests that arrive as a Poisson process of `rate` a second, independent of earlier ones."""

    name: str
    title: str
    rate: float
    num_requests: int
    num_words: int
    num_tokens: int

    @property
    def warm_up(self) -> Closed:
        return Closed(self.name, self.title, 2, 2, self.num_words, 8)

    async def run(self, client: Client, seed: int, on_done: OnDone) -> Outcome:
        requests = random_requests(self.num_requests, self.num_words, self.num_tokens, seed)
        times_s = poisson(self.rate, self.num_requests, random.Random(seed))
        transcripts = await open_loop(client, requests, times_s, on_done=on_done)
        return _outcome(client, transcripts, {"rate": self.rate})


@dataclass(frozen=True, slots=True)
class Turns:
    """Conversations of two turns, one after another. `ttft_ms` is that of the second turn.

    The second turn resends the first with its response and a short question. `turn2_over_turn1` is
    the median ratio of their TTFTs, which a prefix cache makes small.
    """

    name: str
    title: str
    num_conversations: int
    num_words: int
    num_tokens: int

    @property
    def num_requests(self) -> int:
        return 2 * self.num_conversations

    @property
    def warm_up(self) -> "Turns":
        return replace(self, num_conversations=1, num_tokens=8)

    async def run(self, client: Client, seed: int, on_done: OnDone) -> Outcome:
        rng = random.Random(seed)
        first: list[Record] = []
        second: list[Record] = []
        for opening in random_requests(
            self.num_conversations, self.num_words, self.num_tokens, seed
        ):
            first.append(record := await _sent(client, opening))
            on_done()
            second.append(
                await _sent(
                    client, opening.with_turn(record.text, words(8, rng).capitalize() + "?")
                )
            )
            on_done()
        if fault := metrics.first_fault([*first, *second]):
            return Outcome({}, fault)
        ratios = [metrics.ttft(b) / metrics.ttft(a) for a, b in zip(first, second, strict=True)]
        return metrics.outcome(
            second,
            {
                "turn2_over_turn1": float(np.median(ratios)),
                **metrics.percentiles("turn1_ttft_ms", [metrics.ttft(r) for r in first]),
            },
        )


@dataclass(frozen=True, slots=True)
class Stall:
    """Running streams, during which a request with a long prompt arrives.

    `stall_ms` is the longest gap between two arrivals of a running stream before the long prompt's
    first token, `steady_itl_ms` the median gap before the prompt arrived, and `long_ttft_ms` the
    time to the prompt's first token. A server can reduce one at the cost of the other.
    """

    name: str
    title: str
    num_streams: int
    num_tokens: int
    num_words: int
    num_long_words: int

    # The long prompt is sent when every stream has received this many pieces.
    _UNDER_WAY = 16

    @property
    def num_requests(self) -> int:
        return self.num_streams + 1

    @property
    def warm_up(self) -> Closed:
        return Closed(self.name, self.title, 1, 1, self.num_long_words, 2)

    async def run(self, client: Client, seed: int, on_done: OnDone) -> Outcome:
        requests = random_requests(self.num_streams, self.num_words, self.num_tokens, seed)
        streams = [Transcript(request) for request in requests]
        (long,) = map(Transcript, random_requests(1, self.num_long_words, 8, seed + 1))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(exchange(client, stream)) for stream in streams]
            while not self._are_under_way(streams) and not all(t.done() for t in tasks):  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # the code that records pieces must not wait or notify
            await exchange(client, long)
            on_done()
        return self._outcome([client.read(stream) for stream in streams], client.read(long))

    def _are_under_way(self, streams: Sequence[Transcript]) -> bool:
        return all(len(stream.pieces) >= self._UNDER_WAY for stream in streams)

    def _outcome(self, streams: Sequence[Record], long: Record) -> Outcome:
        if fault := metrics.first_fault([*streams, long]):
            return Outcome({}, fault)
        since_s, until_s = long.due_s, long.arrivals_s[0]
        if all(stream.arrivals_s[-1] < since_s for stream in streams):
            return Outcome({}, "every stream had ended when the long prompt came")
        before = [
            replace(s, arrivals_s=tuple(a for a in s.arrivals_s if a < since_s)) for s in streams
        ]
        steady = [gap for stream in before for gap in metrics.itl(stream)]
        return metrics.outcome(
            streams,
            {
                "stall_ms": 1000 * max(metrics.worst_gap(s, since_s, until_s) for s in streams),
                "steady_itl_ms": 1000 * float(np.median(steady)) if steady else 0.0,
                "long_ttft_ms": 1000 * metrics.ttft(long),
            },
        )


@dataclass(frozen=True, slots=True)
class Edit:
    """A client that requests a text again with a small change, so that most of it repeats."""

    name: str
    title: str
    num_requests: int
    num_words: int
    num_tokens: int

    @property
    def warm_up(self) -> "Edit":
        return replace(self, num_requests=1, num_tokens=8)

    async def run(self, client: Client, seed: int, on_done: OnDone) -> Outcome:
        rng = random.Random(seed)
        requests = [
            ask(
                "Repeat the following text word for word, but write every number as a digit.\n\n"
                + sentences(self.num_words, rng),
                self.num_tokens,
            )
            for _ in range(self.num_requests)
        ]
        return _outcome(
            client,
            await closed_loop(client, requests, 1, max_start_s=MAX_START_S, on_done=on_done),
        )


def random_requests(num_requests: int, num_words: int, num_tokens: int, seed: int) -> list[Request]:
    rng = random.Random(seed)
    return [ask(words(num_words, rng), num_tokens) for _ in range(num_requests)]


# The numbers of clients of the closed loops.
CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def standard(size: str = "full") -> dict[str, Load]:
    """Return the loads of a run by name.

    A prompt is its words and about 30 tokens of template.

    Args:
        size: `full`, `brief` for models of a billion parameters and more, or `quick` only to check
            that everything works.
    """
    loads = _SIZES[size]
    return {load.name: load for load in loads}


def _closed(num_clients: int, num_requests: int, num_tokens: int) -> Closed:
    title = "1 client" if num_clients == 1 else f"{num_clients} clients"
    return Closed(f"c{num_clients}", title, num_clients, num_requests, 120, num_tokens)


def _others(share: int, num_tokens: int, num_long_words: int = 3960) -> list[Load]:
    """Return the loads other than `c1` to `c256`, with 1 / `share` of the requests of a full run.

    Args:
        num_tokens: Number of tokens of each running stream of the load `stall`.
        num_long_words: Number of words of its long prompt.
    """
    return [
        Closed("long", "4 clients, long prompts", 4, 8 // share, 820, 32),
        Turns("turns", "second turn", 4 // share, 870, 32),
        Stall("stall", "a long prompt arrives", 4, num_tokens, 120, num_long_words),
        Edit("edit", "repeat a text", 4 // share, 120, 128),
        Open("open-2", "2 requests a second", 2.0, 40 // share, 120, 64),
        Open("open-6", "6 requests a second", 6.0, 120 // share, 120, 64),
    ]


_SIZES: dict[str, list[Load]] = {
    "full": [*(_closed(n, max(4, 2 * n), 64) for n in CLIENTS), *_others(1, 192)],
    "brief": [*(_closed(n, max(2, n), 48) for n in CLIENTS), *_others(2, 128)],
    "quick": [*(_closed(n, max(1, n // 2), 64) for n in CLIENTS), *_others(4, 48, 990)],
}


def of_fronts(*, is_quick: bool = False) -> dict[str, Load]:
    """Return the loads that compare fronts of one engine, by name. Their requests are short, so
    that the front takes a large part of the time.
    """
    share = 4 if is_quick else 1
    nums_requests = {1: 8, 8: 32, 32: 96, 128: 256}
    loads = [_closed(n, num // share, 64) for n, num in nums_requests.items()]
    return {load.name: load for load in loads}


async def _sent(client: Client, request: Request) -> Record:
    transcript = Transcript(request)
    await exchange(client, transcript)
    return client.read(transcript)


def _outcome(
    client: Client, transcripts: Sequence[Transcript], extra: Mapping[str, float] | None = None
) -> Outcome:
    return metrics.outcome([client.read(transcript) for transcript in transcripts], extra)
