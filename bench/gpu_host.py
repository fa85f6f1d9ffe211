"""A process that measures the engine with one model on one device.

`python -m bench.gpu_host MODEL cuda|cpu full|quick` prints `ModelFigures` as JSON.
"""

import gc
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from service.openmp import bound_spinning

bound_spinning()

import msgspec  # noqa: E402  # after the settings that torch reads
import psutil  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig  # noqa: E402

from bench.gpu_results import (  # noqa: E402
    Environment,
    KernelCheck,
    Memory,
    ModelFigures,
    Parity,
    Prefill,
    Steps,
)
from bench.words import sentences  # noqa: E402
from service.checkpoint import resolve  # noqa: E402
from service.config import ServiceSettings  # noqa: E402
from service.domain.engine import Request, TokenLogprobs, TokenOutput  # noqa: E402
from service.domain.sampling import SamplingParams  # noqa: E402
from service.engine.core import EngineCore  # noqa: E402
from service.engine.kv_store import KVShape  # noqa: E402
from service.engine.load import EngineOptions, load_engine  # noqa: E402
from service.engine.paged_attention import check_results  # noqa: E402

_GIB = 2**30
_BLOCK = 256

Device = Literal["cpu", "cuda"]

# transformers has no types for these.
_AutoModel: Any = AutoModelForCausalLM
_AutoTokenizer: Any = AutoTokenizer
_GenerationConfig: Any = GenerationConfig


@dataclass(frozen=True)
class Scale:
    """The sizes of a run.

    Attributes:
        prompt_words: The numbers of words of the prompts of the parity check.
        num_new_tokens: Tokens that are generated for each of them.
        batches: Numbers of sequences whose steps are measured.
        context: Tokens of each of them.
        long_context: Tokens of the long sequence among `num_short` short ones of 100 tokens.
        num_steps: Number of measured steps.
        prompts: Prefills, as numbers of prompts and of tokens of each.
        cache_bytes: Size of the KV cache; None for the engine's default.
        max_model_len: None for the model's own.
    """

    prompt_words: tuple[int, ...]
    num_new_tokens: int
    batches: tuple[int, ...]
    context: int
    long_context: int
    num_short: int
    num_steps: int
    prompts: tuple[tuple[int, int], ...]
    cache_bytes: int | None
    max_model_len: int | None


SCALES = {
    "full": Scale(
        prompt_words=(5, 20, 60, 120, 250, 400, 700, 1100) * 3,
        num_new_tokens=64,
        batches=(1, 32, 256),
        context=500,
        long_context=100_000,
        num_short=31,
        num_steps=50,
        prompts=((1, 512), (1, 8192), (32, 256), (256, 32)),
        cache_bytes=None,
        max_model_len=None,
    ),
    "quick": Scale(
        prompt_words=(5, 40),
        num_new_tokens=4,
        batches=(1, 4),
        context=20,
        long_context=300,
        num_short=3,
        num_steps=3,
        prompts=((1, 64), (4, 16)),
        cache_bytes=2**27,
        max_model_len=512,
    ),
}


def measure(model: str, device: Device, scale: Scale) -> ModelFigures:
    """Measure one model. It is loaded by transformers first, and then by the engine."""
    cache_dir = ServiceSettings.load([]).cache_dir
    path = resolve(model, cache_dir).path
    options = EngineOptions(
        path,
        device=device,
        dtype="bfloat16",
        quantization="none",
        cache_dir=cache_dir,
        max_model_len=scale.max_model_len,
        kv_cache_memory_bytes=scale.cache_bytes,
        prefix_caching=False,
        num_speculative_tokens=0,
    )
    checks = _checks(options) if device == "cuda" else []
    reference = _reference(path, device, scale)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    core, max_model_len = load_engine(options)
    allocated = torch.cuda.memory_allocated() if device == "cuda" else 0
    bench = _Bench(core, max_model_len, device, scale)
    parity = bench.parity(reference)
    steps, prefills = list(bench.steps()), list(bench.prefills())
    memory = _memory(allocated, core, _bytes_per_token(path)) if device == "cuda" else None
    return ModelFigures(model, _environment(device), checks, parity, steps, prefills, memory)


def _environment(device: Device) -> Environment:
    versions = (str(torch.__version__), transformers.__version__, sys.version.split()[0])
    if device == "cpu":
        total = psutil.virtual_memory().total
        return Environment("CPU", total / _GIB, None, None, *versions)
    properties = torch.cuda.get_device_properties(0)
    capability = f"{properties.major}.{properties.minor}"
    memory_gib = properties.total_memory / _GIB
    return Environment(properties.name, memory_gib, capability, torch.version.cuda, *versions)


def _checks(options: EngineOptions) -> list[KernelCheck]:
    """Check torch's kernel for common shapes, and for that of the model."""
    found = []
    for num_heads, num_kv_heads, dim in ((32, 8, 128), (32, 32, 128), (9, 3, 64), (16, 8, 256)):
        shape = KVShape(num_kv_heads, dim, dim, torch.bfloat16)
        problem = None
        try:
            check_results(shape, num_heads, _BLOCK, torch.device(options.device))
        except ValueError as error:
            problem = str(error)
        found.append(KernelCheck(f"{num_heads} heads, {num_kv_heads} KV heads of {dim}", problem))
    return found


def _bytes_per_token(path: Path) -> int:
    """Return the bytes of one token in the cache, from the config of the model."""
    config: Any = AutoConfig.from_pretrained(path).get_text_config()
    heads = config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_per_token: int = 2 * heads * dim * config.num_hidden_layers * torch.bfloat16.itemsize
    return bytes_per_token


def _memory(weights_and_cache: int, core: EngineCore, bytes_per_token: int) -> Memory:
    """Return the memory after all measurements.

    Args:
        weights_and_cache: Bytes that were allocated when the engine was loaded.
    """
    cache = core.stats.num_kv_blocks * core.stats.kv_block_size * bytes_per_token
    return Memory(
        (weights_and_cache - cache) / _GIB,
        cache / _GIB,
        torch.cuda.max_memory_allocated() / _GIB,
        torch.cuda.get_device_properties(0).total_memory / _GIB,
    )


@dataclass(frozen=True)
class Reference:
    """The outputs of transformers in bfloat16, and the log probabilities of their tokens.

    Attributes:
        exact: The log probabilities of the same tokens in float32.
    """

    prompts: list[tuple[int, ...]]
    outputs: list[list[int]]
    logprobs: list[float]
    exact: list[float]


@torch.inference_mode()
def _reference(path: Path, device: Device, scale: Scale) -> Reference:
    tokenizer = _AutoTokenizer.from_pretrained(path)
    prompts: list[tuple[int, ...]] = [
        tuple(tokenizer.encode(sentences(num_words, random.Random(seed))))
        for seed, num_words in enumerate(scale.prompt_words)
    ]
    num_new = scale.num_new_tokens
    config = _GenerationConfig(
        do_sample=False, max_new_tokens=num_new, min_new_tokens=num_new, pad_token_id=0
    )
    model = _AutoModel.from_pretrained(path, dtype=torch.bfloat16).to(device)
    wholes = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=device)
        mask = torch.ones_like(ids)
        wholes.append(model.generate(ids, attention_mask=mask, generation_config=config))
    logprobs = _last_logprobs(model, wholes, num_new)
    model = model.float()
    exact = _last_logprobs(model, wholes, num_new)
    del model
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    outputs = [whole[0, -num_new:].tolist() for whole in wholes]
    return Reference(prompts, outputs, logprobs, exact)


def _last_logprobs(model: Any, sequences: list[torch.Tensor], count: int) -> list[float]:
    """Return the log probabilities of the last `count` tokens of each sequence [1, T]."""
    found: list[float] = []
    for ids in sequences:
        rows = torch.log_softmax(model(ids).logits[0, -count - 1 : -1].float(), dim=-1)
        found += rows.gather(1, ids[0, -count:, None]).squeeze(1).tolist()
    return found


class _Bench:
    """Runs requests on an engine core."""

    def __init__(self, core: EngineCore, max_model_len: int, device: Device, scale: Scale) -> None:
        self._core = core
        self._max_model_len = max_model_len
        self._device = device
        self._scale = scale
        self._next_id = 0
        self._random = random.Random(0)

    def parity(self, reference: Reference) -> Parity:
        """Compare the outputs of all prompts, computed together, with those of transformers."""
        num_tokens = self._scale.num_new_tokens
        sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        outputs = self._run([Request(prompt, sampling) for prompt in reference.prompts])
        one = SamplingParams(temperature=0.0, max_tokens=1)
        scored = self._run(
            [
                Request((*prompt, *ids), one, num_prompt_logprobs=1)
                for prompt, ids in zip(reference.prompts, reference.outputs, strict=True)
            ]
        )
        entries = [entry for _, logprobs in scored for entry in logprobs[-num_tokens:]]
        ours = [entry.logprob for entry in entries]
        return Parity(
            len(outputs),
            sum(a == b for (a, _), b in zip(outputs, reference.outputs, strict=True)),
            len(entries),
            sum(entry.top[0][0] == entry.token_id for entry in entries),
            fmean(_differences(ours, reference.exact)),
            fmean(_differences(reference.logprobs, reference.exact)),
            max(_differences(ours, reference.logprobs)),
        )

    def steps(self) -> Iterator[Steps]:
        scale = self._scale
        greedy = SamplingParams(temperature=0.0)
        for n in scale.batches:
            yield self._steps(f"{scale.context} tokens, greedy", [scale.context] * n, greedy)
        n = scale.batches[-1]
        filtered = [
            ("top-p 0.9", SamplingParams(top_p=0.9), None),
            ("top-k 50, top-p 0.9", SamplingParams(top_k=50, top_p=0.9), None),
            ("allowed tokens", SamplingParams(allowed_token_ids=frozenset(range(1000))), None),
            ("greedy, 5 log probabilities", greedy, 5),
        ]
        for title, sampling, num_logprobs in filtered:
            yield self._steps(title, [scale.context] * n, sampling, num_logprobs)
        short = [100] * scale.num_short
        yield self._steps("100 tokens, greedy", [100, *short], greedy)
        room = self._max_model_len - 2 * scale.num_steps - 8
        long = min(scale.long_context, room)
        yield self._steps(f"the same, but one has {long} tokens", [long, *short], greedy)

    def prefills(self) -> Iterator[Prefill]:
        for n, length in self._scale.prompts:
            title = f"{n} x {length} tokens"
            if skipped := self._obstacle([length] * n):
                yield Prefill(title, n * length, skipped=skipped)
                continue
            seconds = []
            for _ in range(3):  # the first is a warm-up
                start_s = time.perf_counter()
                self._run([Request(self._prompt(length), SamplingParams(max_tokens=1))] * n)
                seconds.append(time.perf_counter() - start_s)
            yield Prefill(title, n * length, min(seconds[1:]))

    def _steps(
        self,
        title: str,
        lengths: list[int],
        sampling: SamplingParams,
        num_logprobs: int | None = None,
    ) -> Steps:
        num_steps = self._scale.num_steps
        if skipped := self._obstacle([length + 2 * num_steps + 4 for length in lengths]):
            return Steps(title, len(lengths), skipped=skipped)
        ids = []
        for length in lengths:
            params = replace(
                sampling, seed=self._next_id, max_tokens=2 * num_steps + 3, ignore_eos=True
            )
            request = Request(self._prompt(length), params, num_logprobs=num_logprobs)
            ids.append(self._add(request))
        started: set[int] = set()
        while len(started) < len(ids):
            outputs = [(o.request_id, o.output) for o in self._core.step()]
            started |= {i for i, o in outputs if isinstance(o, TokenOutput) and o.token_ids}
        durations = []
        for _ in range(num_steps):
            start_s = time.perf_counter()
            self._core.step()
            durations.append(time.perf_counter() - start_s)
        waits = _waits(self._core.step) if self._device == "cuda" else None
        for request_id in ids:
            self._core.abort(request_id)
        return Steps(title, len(lengths), median(durations) * 1000, waits)

    def _obstacle(self, lengths: list[int]) -> str | None:
        """Return why sequences of these lengths cannot run together; None if they can."""
        stats = self._core.stats
        if max(lengths) > self._max_model_len:
            return f"{max(lengths)} tokens are more than the model's {self._max_model_len}"
        if len(lengths) > stats.max_num_seqs:
            return f"at most {stats.max_num_seqs} sequences run at once"
        needed = sum(-(-length // stats.kv_block_size) for length in lengths)
        if needed > stats.num_kv_blocks:
            return f"{needed} blocks are needed, and the cache has {stats.num_kv_blocks}"
        return None

    def _run(self, requests: list[Request]) -> list[tuple[list[int], list[TokenLogprobs]]]:
        """Return the tokens of each request, and the log probabilities of its prompt."""
        found: dict[int, tuple[list[int], list[TokenLogprobs]]] = {
            self._add(request): ([], []) for request in requests
        }
        while self._core.has_unfinished:
            for output in self._core.step():
                if not isinstance(output.output, TokenOutput):
                    raise output.output
                found[output.request_id][0].extend(output.output.token_ids)
                found[output.request_id][1].extend(output.output.prompt_logprobs)
        return list(found.values())

    def _add(self, request: Request) -> int:
        self._next_id += 1
        self._core.add(self._next_id, request)
        return self._next_id

    def _prompt(self, length: int) -> tuple[int, ...]:
        return tuple(self._random.choices(range(100, 1000), k=length))


def _differences(some: list[float], others: list[float]) -> list[float]:
    return [abs(a - b) for a, b in zip(some, others, strict=True)]


def _waits(step: Callable[[], object]) -> float | None:
    """Return how often a step waits for the device; None if torch cannot report it."""
    if not hasattr(torch._C, "_cuda_set_sync_debug_mode"):
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return len([w for w in caught if "synchroniz" in str(w.message)])


if __name__ == "__main__":
    model, device, scale = sys.argv[1:]
    # Output of libraries goes to the log. Only the figures go to stdout.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    figures = measure(model, "cuda" if device == "cuda" else "cpu", SCALES[scale])
    print(msgspec.json.encode(figures).decode(), file=replies, flush=True)
