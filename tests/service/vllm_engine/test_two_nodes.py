"""The service as the head of two nodes, on which vLLM runs a model with pipeline parallelism.

The second node is a network namespace with a host name and shared memory of its own.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import grpc
import pytest

from service.checkpoint import resolve
from service.config import ServiceSettings
from tests.support.programs import Client, RealService
from tests.support.rpc_errors import rpc_error
from tests.support.second_node import (
    HERE,
    INTERFACE_HERE,
    INTERFACE_THERE,
    THERE,
    SecondNode,
    why_unavailable,
)

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable()),
]

ARGUMENTS = {
    "pipeline_parallel_size": 2,
    "nnodes": 2,
    "master_addr": HERE,
    "max_model_len": 1024,
    "max_num_seqs": 4,
    "kv_cache_memory_bytes": 1 << 28,
    # Without a compilation vLLM's CPU worker skips its warm-up, which makes the buffers that the
    # second stage of a pipeline needs.
    "compilation_config": {"mode": "DYNAMO_TRACE_ONCE", "backend": "eager"},
}


def environment(address: str, interface: str) -> dict[str, str]:
    return {"VLLM_HOST_IP": address, "GLOO_SOCKET_IFNAME": interface, "HF_HUB_OFFLINE": "1"}


def head() -> RealService:
    arguments = json.dumps(ARGUMENTS | {"node_rank": 0})
    options = ("--engine", "vllm", "--vllm-args", arguments, "--step-timeout-s", "15")
    return RealService(*options, env=environment(HERE, INTERFACE_HERE))


@contextmanager
def worker(node: SecondNode, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the second node of vLLM, as a group of processes."""
    settings = ServiceSettings.load([])
    model = str(resolve(settings.model, settings.cache_dir).path)
    options = [
        f"--{name.replace('_', '-')}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in ARGUMENTS.items()
    ]
    vllm = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, "--headless"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            node.command(*vllm, "--node-rank=1", *options),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment(THERE, INTERFACE_THERE)},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def test_service_serves_on_two_nodes_and_ends_when_the_second_fails(tmp_path: Path) -> None:
    with ExitStack() as stack:
        node = stack.enter_context(SecondNode())
        second = stack.enter_context(worker(node, tmp_path / "worker.log"))
        service = stack.enter_context(closing(head()))
        while not service.events("ready"):  # a start takes minutes
            assert service.is_running, service.log
            assert second.poll() is None, (tmp_path / "worker.log").read_text()
            await asyncio.sleep(0.1)
        await service.ready()
        async with Client(service.target) as client:
            response = await client.create("What is the capital of France?", 16)
            assert "Paris" in response.choices[0].message.content
            os.killpg(second.pid, signal.SIGKILL)
            failed = await rpc_error(client.create("What is the capital of Italy?", 16))
            assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "ENGINE_DEAD")
        assert await service.ended() == 1
