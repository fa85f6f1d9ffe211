"""The service as the head of two nodes, on which vLLM runs a model with pipeline parallelism."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from service.checkpoint import resolve
from service.config import ServiceSettings
from tests.support.nodes import ADDRESSES, INTERFACES, Nodes, why_unavailable
from tests.support.programs import RealService

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable()),
]

ARGUMENTS = {
    "pipeline_parallel_size": 2,
    "nnodes": 2,
    "master_addr": ADDRESSES[0],
    "max_model_len": 1024,
    "max_num_seqs": 4,
    "kv_cache_memory_bytes": 1 << 28,
    # Without a compilation vLLM's CPU worker skips its warm-up, which makes the buffers that the
    # second stage of a pipeline needs.
    "compilation_config": {"mode": "DYNAMO_TRACE_ONCE", "backend": "eager"},
}


def environment(index: int) -> dict[str, str]:
    return {
        "VLLM_HOST_IP": ADDRESSES[index],
        "GLOO_SOCKET_IFNAME": INTERFACES[index],
        "HF_HUB_OFFLINE": "1",
    }


def head(nodes: Nodes) -> RealService:
    arguments = json.dumps(ARGUMENTS | {"node_rank": 0})
    options = ("--engine", "vllm", "--vllm-args", arguments, "--step-timeout-s", "15")
    return RealService(*options, env=environment(0), prefix=nodes.command(0))


@contextmanager
def worker(nodes: Nodes, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run vLLM on the second node, as a group of processes."""
    settings = ServiceSettings.load([])
    model = str(resolve(settings.model, settings.cache_dir).path)
    options = [
        f"--{name.replace('_', '-')}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in ARGUMENTS.items()
    ]
    vllm = (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, "--headless")
    with log.open("wb") as output:
        process = subprocess.Popen(
            nodes.command(1, *vllm, "--node-rank=1", *options),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment(1)},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def ask(nodes: Nodes, service: RealService, question: str) -> str:
    """Send a chat on the first node. Return what `chatrpc` writes, with the error."""
    process = await asyncio.create_subprocess_exec(
        *nodes.command(0, sys.executable, "-m", "chatrpc_cli", "chat"),
        *("--target", service.target, question),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return output.decode()


async def test_service_serves_on_two_nodes_and_ends_when_the_second_fails(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    with ExitStack() as stack:
        nodes = stack.enter_context(Nodes())
        second = stack.enter_context(worker(nodes, log))
        service = stack.enter_context(closing(head(nodes)))
        while not service.events("ready"):  # a start takes minutes
            assert service.is_running, service.log
            assert second.poll() is None, log.read_text()
            await asyncio.sleep(0.1)
        await service.ready()
        assert "Paris" in await ask(nodes, service, "What is the capital of France?")
        os.killpg(second.pid, signal.SIGKILL)
        assert "ENGINE_DEAD" in await ask(nodes, service, "What is the capital of Italy?")
        assert await service.ended() == 1
