"""The engine on a CUDA device: defaults, memory, failures of the device and rejected options."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
import torch

from service.domain.engine import Request, TokenOutput
from service.domain.engine_settings import EngineModel, EngineSettings
from service.domain.sampling import SamplingParams
from service.engine.async_engine import AsyncEngine
from service.engine.load import EngineOptions, load_engine, load_model
from service.engine.local import local_engine
from service.errors import EngineDead, ModelLoadError, StepFailed
from tests.fakes.wait import until
from tests.service.engine.models import CONFIGS, kv_bytes_per_token, make_config, save_model
from tests.service.engine.perplexity import measure
from tests.support.simulated_cuda.device import (
    TOTAL_MEMORY,
    allocated_bytes,
    counting,
    device_loss,
    memory_limit,
)

pytestmark = pytest.mark.simulated_cuda

GREEDY = SamplingParams(temperature=0.0, max_tokens=40)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_type, fields = CONFIGS["llama"]
    return save_model(tmp_path_factory.mktemp("llama"), make_config(model_type, **fields))


def options(path: Path) -> EngineOptions:
    return EngineOptions(path, block_size=16, max_num_seqs=4, kv_cache_memory_bytes=2**22)


def loaded(options: EngineOptions) -> Mapping[str, object]:
    """Load an engine. Return the fields of the log event `model_loaded`."""
    with structlog.testing.capture_logs() as logs:
        load_engine(options)
    [event] = [entry for entry in logs if entry["event"] == "model_loaded"]
    return event


def test_auto_chooses_the_device_and_its_defaults(llama: Path) -> None:
    event = loaded(EngineOptions(llama))
    assert (event["device"], event["dtype"], event["quantization"]) == ("cuda", "bfloat16", "none")
    assert (event["max_num_seqs"], event["max_num_batched_tokens"]) == (256, 2048)
    assert event["num_speculative_tokens"] == 0
    assert event["kv_cache_tokens"] == 256 * 256  # a block for each sequence


def test_output_may_depend_on_the_batch(llama: Path) -> None:
    core, _ = load_engine(options(llama))
    assert not core.is_batch_invariant


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_int8_is_rejected_in_one_line(llama: Path, device: str) -> None:
    int8 = EngineOptions(llama, device="auto" if device == "auto" else "cuda", quantization="int8")
    for load in (load_engine, load_model):
        with pytest.raises(ModelLoadError, match=r"^quantization=int8 is supported only on CPUs"):
            load(int8)


async def test_cpu_kernels_are_not_compiled_for_the_gpu(llama: Path, tmp_path: Path) -> None:
    engine = local_engine(EngineSettings(cache_dir=tmp_path, max_num_seqs=4))
    await engine.start(EngineModel(llama))
    assert await engine.stop()
    assert not (tmp_path / "native").exists()


def test_perplexity_is_measured_on_the_device(llama: Path) -> None:
    text = [i * i % 97 for i in range(60)]
    on_cpu = measure(EngineOptions(llama, device="cpu", dtype="float32"), text, 30)
    with counting() as counts:
        on_gpu = measure(EngineOptions(llama, device="cuda", dtype="float32"), text, 30)
    assert counts.kernels
    assert on_gpu == pytest.approx(on_cpu, rel=1e-4)


def test_cache_gets_the_memory_that_weights_and_a_step_leave(llama: Path) -> None:
    mib = 2**20
    load_engine(options(llama))  # whatever torch keeps is allocated now
    share = (allocated_bytes() + mib) / TOTAL_MEMORY
    limited = replace(
        options(llama),
        kv_cache_memory_bytes=None,
        gpu_memory_utilization=share,
        max_num_seqs=32,
        max_num_batched_tokens=256,
        dtype="float32",
    )
    with structlog.testing.capture_logs() as logs:
        core, _ = load_engine(limited)
    [measured] = [entry for entry in logs if entry["event"] == "gpu_memory_measured"]
    # A step needs at least the logits of 32 sequences for 97 tokens.
    assert 32 * 97 * 4 < measured["step_bytes"] < mib * 3 // 4
    weights = sum(file.stat().st_size for file in llama.glob("*.safetensors"))
    config = make_config(CONFIGS["llama"][0], **CONFIGS["llama"][1])
    used = core.stats.num_kv_blocks * 16 * kv_bytes_per_token(config)
    assert used + measured["step_bytes"] + weights == pytest.approx(mib, abs=mib / 16)
    before = allocated_bytes()
    torch.cuda.reset_peak_memory_stats()
    for i in range(32):
        core.add(i, Request((5,) * 8, SamplingParams(top_p=0.9, max_tokens=3), num_logprobs=1))
    while core.has_unfinished:
        core.step()
    assert torch.cuda.max_memory_allocated() - before <= measured["step_bytes"]


def test_memory_utilization_without_a_gpu_is_rejected(llama: Path) -> None:
    on_cpu = EngineOptions(llama, device="cpu", gpu_memory_utilization=0.5)
    with pytest.raises(
        ModelLoadError, match="gpu_memory_utilization is set, and the device is cpu"
    ):
        load_engine(on_cpu)


def test_model_that_does_not_fit_into_the_memory_is_rejected(llama: Path) -> None:
    """The limits end the start at the weights, at the cache and at the warm-up."""
    before = allocated_bytes()
    core, _ = load_engine(options(llama))
    needed = allocated_bytes() - before
    del core
    assert allocated_bytes() == before
    for num_bytes in (10_000, needed - 10_000, needed + 1_000):
        with memory_limit(num_bytes), pytest.raises(ModelLoadError, match="do not fit into the me"):
            load_engine(options(llama))


@pytest.mark.parametrize("num_kernels", [0, 100])
def test_device_that_fails_at_start_is_reported(llama: Path, num_kernels: int) -> None:
    with device_loss(num_kernels), pytest.raises(ModelLoadError, match="The device cuda failed"):
        load_engine(options(llama))


class Engine:
    """A started engine, and the generation of a request that has returned a token."""

    def __init__(self, path: Path) -> None:
        self.engine = AsyncEngine(lambda _model: load_engine(options(path)), max_queue_size=8)
        self.request = Request(tuple(range(5, 25)), GREEDY)

    async def num_tokens(self) -> int:
        async with aclosing(self.engine.generate(self.request)) as outputs:
            return sum([len(output.token_ids) async for output in outputs])


async def test_step_without_memory_fails_only_its_own_requests(llama: Path) -> None:
    rig = Engine(llama)
    await rig.engine.start(EngineModel(llama))
    with memory_limit(0), pytest.raises(StepFailed):
        await rig.num_tokens()
    assert await rig.num_tokens() == 40
    assert rig.engine.stats().num_failed_steps == 1
    assert await rig.engine.stop()


async def test_memory_of_a_failed_step_is_freed(llama: Path) -> None:
    core, _ = load_engine(options(llama))
    before = allocated_bytes()
    core.add(0, Request(tuple(range(5, 25)), GREEDY))
    with memory_limit(2**14):
        [failed] = core.step()
        assert isinstance(failed.output, StepFailed)
        assert allocated_bytes() - before < 2**12


async def test_lost_device_fails_the_engine_at_once(llama: Path) -> None:
    rig = Engine(llama)
    await rig.engine.start(EngineModel(llama))
    dead = asyncio.create_task(rig.engine.wait_dead())
    async with aclosing(rig.engine.generate(rig.request)) as outputs:
        while not (await anext(outputs)).token_ids:
            pass
        with device_loss(num_kernels=50), pytest.raises(EngineDead):
            async for output in outputs:
                assert isinstance(output, TokenOutput)
    await until(dead.done)
    assert rig.engine.stats().num_failed_steps <= 1
    with pytest.raises(EngineDead):
        await rig.num_tokens()
    assert not await rig.engine.stop()
