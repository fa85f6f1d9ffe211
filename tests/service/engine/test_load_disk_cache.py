"""A prefix from disk has the bits that the model computes, and only for the same model."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from service.domain.engine import Request, TokenLogprobs, TokenOutput
from service.domain.engine_settings import DType, Quantization
from service.domain.sampling import SamplingParams
from service.engine.block_bytes import BlockBytes
from service.engine.block_pool import BlockPool
from service.engine.core import EngineCore
from service.engine.disk_cache import MIN_TOKENS, DiskCache
from service.engine.load import EngineOptions, load_engine, load_model
from service.engine.load_disk_cache import load_disk_cache, start_digest
from service.engine.model_runner import ModelRunner
from service.engine.scheduler import Scheduler
from service.engine.sequence import Sequence
from service.errors import ModelLoadError
from tests.fakes.wait import block_until
from tests.service.engine.models import CONFIGS, VOCAB_SIZE, make_config, save_model
from tests.support.device import DEVICE

MAX_LEN = 512
NUM_BLOCKS = 64
_SIZES = {"max_position_embeddings": MAX_LEN, "head_dim": 16}
PROMPT = tuple(random.Random(1).choices(range(VOCAB_SIZE), k=400))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the native decoder, and one of the transformers backend."""
    model_type, fields = CONFIGS[request.param]
    sizes: dict[str, Any] = {"n_positions": MAX_LEN} if request.param == "gpt2" else _SIZES
    return save_model(tmp_path_factory.mktemp("model"), make_config(model_type, **fields | sizes))


@dataclass
class Engine:
    """An engine whose blocks can be looked at."""

    core: EngineCore
    pool: BlockPool
    memory: BlockBytes
    cache: DiskCache | None

    def run(self, request: Request) -> tuple[list[int], list[TokenLogprobs], int]:
        """Return tokens, log probabilities, and the number of cached tokens."""
        token_ids: list[int] = []
        logprobs: list[TokenLogprobs] = []
        num_cached = 0
        self.core.add(0, request)
        while self.core.has_unfinished or self.core.has_work or self._is_storing:
            for each in self.core.step():
                assert isinstance(each.output, TokenOutput)
                token_ids += each.output.token_ids
                logprobs += each.output.logprobs
                num_cached = each.output.num_cached_tokens or num_cached
            time.sleep(0)  # lets the threads of the cache run
        return token_ids, logprobs, num_cached

    @property
    def _is_storing(self) -> bool:
        return self.cache is not None and self.cache.is_storing

    def blocks(self, num_tokens: int) -> list[bytes]:
        """Return the cached blocks of the first tokens of `PROMPT`."""
        sequence = Sequence(0, request(), MAX_LEN)
        found = []
        for n in range(1, num_tokens // self.pool.block_size + 1):
            block_id = self.pool.find(self.pool.prefix_hash(sequence, n))
            assert block_id is not None
            found.append(self.memory.read(block_id).tobytes())
        return found


def request(max_tokens: int = 6) -> Request:
    return Request(PROMPT, SamplingParams(temperature=0.0, max_tokens=max_tokens), num_logprobs=3)


@pytest.fixture
def start(checkpoint: Path, tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def start(path: Path = checkpoint, *, is_cached: bool = True, **options: Any) -> Engine:
        chosen = EngineOptions(path, device=DEVICE, **options)
        if is_cached:
            chosen = replace(chosen, prefix_cache_dir=tmp_path / "prefixes")
        block_size = chosen.block_size or 16
        loaded = load_model(chosen)
        model = loaded.finish(NUM_BLOCKS, block_size, MAX_LEN)
        runner, pool = ModelRunner(model), BlockPool(NUM_BLOCKS, block_size)
        digest = start_digest(chosen, path)
        cache = load_disk_cache(chosen, digest, VOCAB_SIZE, MAX_LEN, loaded, model, runner, pool)
        scheduler = Scheduler(pool, 4, 128, disk_cache=cache)
        core = EngineCore(scheduler, runner, MAX_LEN)
        engines.append(Engine(core, pool, BlockBytes(model.block_tensors()), cache))
        if cache is not None:
            block_until(lambda: cache.is_open)
        return engines[-1]

    yield start
    for engine in engines:
        engine.core.close()


def stored(engine: Engine) -> Engine:
    for _ in range(2):
        engine.run(request(1))
    assert engine.core.stats.disk_cache.num_written_bytes > 0
    return engine


def test_loaded_prefix_has_the_bits_of_a_computed_one(start: Callable[..., Engine]) -> None:
    stored(start())
    loaded, computed = start(), start(is_cached=False)
    *got, num_cached = loaded.run(request())
    assert num_cached == 384
    assert computed.run(request()) == (*got, 0)
    assert loaded.blocks(384) == computed.blocks(384)
    assert loaded.core.stats.disk_cache.num_hits == 384


@pytest.mark.parametrize(
    "options", [{"dtype": "float16"}, {"block_size": 32}], ids=["type", "block size"]
)
def test_prefix_of_another_precision_or_block_size_is_not_loaded(
    start: Callable[..., Engine], options: dict[str, Any]
) -> None:
    stored(start(dtype="float32"))
    *_, num_cached = start(**{"dtype": "float32"} | options).run(request())
    assert num_cached == 0
    *_, num_cached = start(dtype="float32").run(request())
    assert num_cached == 384


def test_prefix_of_another_model_is_not_loaded(
    start: Callable[..., Engine], checkpoint: Path, tmp_path: Path
) -> None:
    stored(start())
    other = tmp_path / "other"
    other.mkdir()
    for file in checkpoint.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    weights = load_file(other / "model.safetensors")
    name = min(weights, key=lambda each: weights[each].numel())  # the smallest tensor
    weights[name].view(-1)[-1] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    *_, num_cached = start(other).run(request())
    assert num_cached == 0


@pytest.mark.skipif(DEVICE != "cpu", reason="int8 needs a CPU")
def test_prefix_of_another_quantization_is_not_loaded(
    start: Callable[..., Engine], checkpoint: Path
) -> None:
    if not load_model(EngineOptions(checkpoint, device="cpu")).description.get("quantization"):
        pytest.skip("the transformers backend has no int8")

    def started(dtype: DType, quantization: Quantization) -> Engine:
        return start(dtype=dtype, quantization=quantization)

    stored(started("float32", "int8"))
    *_, num_cached = started("float32", "none").run(request())
    assert num_cached == 0
    *_, num_cached = started("float32", "int8").run(request())
    assert num_cached == 384


def test_size_that_fits_no_prefix_is_rejected(checkpoint: Path, tmp_path: Path) -> None:
    options = EngineOptions(
        checkpoint, device=DEVICE, prefix_cache_dir=tmp_path, prefix_cache_disk_bytes=1000
    )
    with pytest.raises(ModelLoadError, match=f"prefix_cache_disk_bytes=1000 .* {MIN_TOKENS} tok"):
        load_engine(options)


def test_engine_with_a_short_context_starts_with_a_directory(
    checkpoint: Path, tmp_path: Path
) -> None:
    options = EngineOptions(
        checkpoint, device=DEVICE, prefix_cache_dir=tmp_path, max_model_len=8, block_size=32
    )
    core, _ = load_engine(options)
    core.add(0, Request((1, 2, 3), SamplingParams(temperature=0.0, max_tokens=2)))
    while core.has_unfinished:
        core.step()
    core.close()
