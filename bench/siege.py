"""Measures how an ordinary caller is served while another one attacks (`bench.attacks`).

It starts a service and a gateway with two keys. The ordinary caller sends short chats, one after
another, alternately over HTTP and gRPC, and calls the probes: first without an attack, then during
each attack. An attack runs in its own process, on the same cores.
"""

import asyncio
import os
import random
import secrets
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgspec
import uvloop

from bench.attacks import ATTACKS, Target
from bench.client_grpc import GrpcClient
from bench.client_http import HttpClient
from bench.loadgen import exchange
from bench.metrics import ttft
from bench.probes import gateway_probes, service_probes
from bench.process import ProcessGroup
from bench.progress import Progress
from bench.request import Client, Transcript, ask
from bench.server import Ports, StartError
from bench.words import words
from service.checkpoint import EMBEDDED_MODEL

# The bound on the time to first token during an attack is this multiple of the time without an
# attack, plus the duration of one step.
MAX_TTFT_RATIO = 3.0
MAX_PROBE_MS = 250.0

_PROMPT_WORDS, _NUM_TOKENS = 40, 8
_LONG_WORDS = 480  # nearly all of the tokens that a step computes by default
_PROBE_INTERVAL_S = 0.1
_CALM_S = 3.0
_START_TIMEOUT_S = 120.0


class Served(msgspec.Struct, frozen=True):
    """The ordinary caller's times in milliseconds."""

    ttft_ms: list[float]
    probe_ms: dict[str, list[float]]
    faults: list[str]

    @property
    def median_ttft_ms(self) -> float:
        return statistics.median(self.ttft_ms) if self.ttft_ms else float("inf")

    @property
    def longest_probe_ms(self) -> float:
        return max((max(times) for times in self.probe_ms.values() if times), default=0.0)


class Siege(msgspec.Struct, frozen=True):
    """The results. `step_ms` is the approximate duration of a full step of the engine."""

    step_ms: float
    calm: Served
    attacked: dict[str, Served]
    peak_mib: dict[str, float]

    @property
    def bound_ms(self) -> float:
        """The longest median time to first token that is allowed during an attack."""
        return MAX_TTFT_RATIO * self.calm.median_ttft_ms + self.step_ms

    def fault(self, name: str) -> str | None:
        """Return why an attack was successful, or None if it was not."""
        served = self.attacked[name]
        if served.faults:
            return f"{len(served.faults)} failed: {served.faults[0]}"
        if served.median_ttft_ms > self.bound_ms:
            return f"TTFT above {self.bound_ms:.0f} ms"
        if served.longest_probe_ms > MAX_PROBE_MS:
            return f"a probe took more than {MAX_PROBE_MS:.0f} ms"
        return None


@dataclass(frozen=True, slots=True)
class Stack:
    """A running service and gateway, and the secrets of their two keys."""

    group: ProcessGroup
    ports: Ports
    ordinary: str
    attacker: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports.http}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports.grpc}"


async def siege(names: Sequence[str], seconds: float, logs: Path, progress: Progress) -> Siege:
    """Measure for `seconds` without an attack, and for `seconds` during each named attack."""
    async with _stack(logs) as stack:
        with progress.load("no attack", "chatrpc", None):
            step_ms = await _step_ms(stack)
            calm = await _serve(stack, seconds)
        attacked, peak_mib = {}, {}
        for name in names:
            with progress.load(ATTACKS[name].title, "chatrpc", None):
                worker = await _attack(stack, name, logs)
                try:
                    attacked[name] = await _serve(stack, seconds)
                finally:
                    await worker.end()
                peak_mib[name] = stack.group.pss_bytes() / (1 << 20)
                await _until_calm(stack)
        return Siege(step_ms, calm, attacked, peak_mib)


async def _serve(stack: Stack, seconds: float) -> Served:
    """Send chats and call the probes for some seconds."""
    clients: list[Client] = [
        HttpClient(f"{stack.url}/v1", EMBEDDED_MODEL, key=stack.ordinary),
        GrpcClient(stack.grpc, EMBEDDED_MODEL, key=stack.ordinary),
    ]
    stop = asyncio.Event()
    probing = asyncio.ensure_future(_probe(stack, stop))
    rng = random.Random(1)
    ttfts: list[float] = []
    faults: list[str] = []
    end_s = time.perf_counter() + seconds
    try:
        while time.perf_counter() < end_s or len(ttfts) + len(faults) < len(clients):
            for client in clients:
                transcript = Transcript(ask(words(_PROMPT_WORDS, rng), _NUM_TOKENS))
                await exchange(client, transcript)
                record = client.read(transcript)
                if record.fault:
                    faults.append(record.fault)
                else:
                    ttfts.append(1000 * ttft(record))
    finally:
        stop.set()
        probe_ms, probe_faults = await probing
        for client in clients:
            await client.close()
    return Served(ttfts, probe_ms, faults + probe_faults)


async def _probe(stack: Stack, stop: asyncio.Event) -> tuple[dict[str, list[float]], list[str]]:
    probes = {**service_probes(stack.grpc), **gateway_probes(stack.url)}
    times_ms: dict[str, list[float]] = {name: [] for name in probes}
    faults: list[str] = []
    while not stop.is_set():
        for name, probe in probes.items():
            start_s = time.perf_counter()
            try:
                if not await probe():
                    faults.append(f"{name}: not well")
            except Exception as error:  # any error is a failure of the probe
                faults.append(f"{name}: {type(error).__name__}")
            times_ms[name].append(1000 * (time.perf_counter() - start_s))
            await asyncio.sleep(_PROBE_INTERVAL_S)
    return times_ms, faults


async def _step_ms(stack: Stack) -> float:
    """Return the median time to first token of a prompt that nearly fills one step."""
    client = GrpcClient(stack.grpc, EMBEDDED_MODEL, key=stack.ordinary)
    rng, times = random.Random(2), []
    try:
        for _ in range(5):
            transcript = Transcript(ask(words(_LONG_WORDS, rng), 2))
            await exchange(client, transcript)
            times.append(1000 * ttft(client.read(transcript)))
    finally:
        await client.close()
    return statistics.median(times)


async def _until_calm(stack: Stack) -> None:
    """Wait until two chats in a row succeed, which shows that the effects of an attack are over."""
    await asyncio.sleep(_CALM_S)
    await _serve(stack, 0)


async def _attack(stack: Stack, name: str, logs: Path) -> ProcessGroup:
    """Start an attack and wait until it has begun."""
    target = msgspec.json.encode(
        Target(stack.url, stack.grpc, EMBEDDED_MODEL, stack.attacker)
    ).decode()
    worker = ProcessGroup(logs / f"attack-{name}.log")
    process = await worker.add(
        (sys.executable, "-m", "bench.siege", name, target),
        os.environ,
        stdin=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None  # noqa: S101  # stdout is a pipe
    await process.stdout.readline()
    return worker


@asynccontextmanager
async def _stack(logs: Path) -> AsyncIterator[Stack]:
    """Start a service and a gateway that accept two keys."""
    ports, ordinary, attacker = Ports(), secrets.token_urlsafe(), secrets.token_urlsafe()
    keys = logs / "siege-keys.toml"
    keys.write_text(_key("ordinary", ordinary) + _key("attacker", attacker))
    python, log = (sys.executable, "-m"), ("--log-level", "warning", "--api-keys", str(keys))
    service = (*python, "service", "--model", EMBEDDED_MODEL, "--port", str(ports.grpc), *log)
    upstream = ("--upstream", f"127.0.0.1:{ports.grpc}")
    gateway = (*python, "gateway_http", *upstream, "--port", str(ports.http), *log)
    group = await ProcessGroup.start((service, gateway), os.environ, logs / "siege.log")
    stack = Stack(group, ports, ordinary, attacker)
    try:
        await _until_ready(stack)
        yield stack
    finally:
        await group.end()


async def _until_ready(stack: Stack) -> None:
    give_up_s = time.perf_counter() + _START_TIMEOUT_S
    while (await _serve(stack, 0)).faults:
        if death := stack.group.death:
            raise StartError(death)
        if time.perf_counter() > give_up_s:
            raise StartError("not ready in time")
        await asyncio.sleep(0.2)


def _key(name: str, secret: str) -> str:
    return f'[[key]]\nname = "{name}"\nsha256 = "{sha256(secret.encode()).hexdigest()}"\n'


async def _run_attack(name: str, target: Target) -> None:
    """Run an attack in this process until it is terminated. A line on stdout reports the start."""
    print("begun", flush=True)  # noqa: T201  # the parent process waits for this line
    await ATTACKS[name].run(target)


if __name__ == "__main__":
    uvloop.run(_run_attack(sys.argv[1], msgspec.json.decode(sys.argv[2], type=Target)))
