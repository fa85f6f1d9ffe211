"""Compares the throughput of embeddings with the package sentence_transformers, in one process.

Both have the same model, texts, precision and number of threads. Rounds alternate, and the fastest
round of each counts, since other processes only make a round slower. Our numbers include
tokenization, the engine and the conversion to numbers, and exclude gRPC.
"""

import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from bench.words import sentences
from service.config import ServiceSettings
from service.domain.backend import CallContext, EmbeddingBackend
from service.domain.embeddings import EmbeddingRequest
from service.domain.engine import Caller
from service.domain.pooling import Truncation
from service.runtimes import load_runtime_factory

# Words of the texts: queries, sentences and paragraphs.
_LENGTHS = (6, 12, 20, 40, 80, 120)
# The default of sentence_transformers, and a larger batch.
_BATCH_SIZES = (32, 128)
_TIMEOUT_S = 600.0


class _Inline:
    """`service.domain.backend.Workers` that call functions at once."""

    async def text(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    async def grammar(self, _: int, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


async def measure(path: Path, num_texts: int, rounds: int) -> Mapping[str, float]:
    """Return texts per second by name, of embedding `num_texts` texts at once.

    Args:
        path: The directory of an embedding model with the files of sentence_transformers.

    Raises:
        RuntimeError: It is no embedding model, or the embeddings differ by more than 1e-5.
    """
    rng = random.Random(1)
    texts = [sentences(rng.choice(_LENGTHS), rng) for _ in range(num_texts)]
    settings = ServiceSettings.load(["--model", str(path), "--device", "cpu"])
    runtime = load_runtime_factory(settings)()
    try:
        backend = (await runtime.load()).embeddings
        if backend is None:
            raise RuntimeError(f"{path} is no embedding model")
        reference = SentenceTransformer(str(path), device="cpu")
        entries: dict[str, Callable[[], Awaitable[Sequence[Any]]]] = {
            "chatrpc": partial(_embedded, backend, texts)
        }
        for size in _BATCH_SIZES:
            entries[f"sentence_transformers, batch {size}"] = partial(
                _encoded, reference, texts, size
            )
        results = [np.array(await embed()) for embed in entries.values()]
        if (error := max(np.abs(results[0] - each).max() for each in results)) > 1e-5:
            raise RuntimeError(f"the embeddings differ by {error:g}")
        fastest = dict.fromkeys(entries, float("inf"))
        for _ in range(rounds):
            for name, embed in entries.items():
                started_s = time.perf_counter()
                await embed()
                fastest[name] = min(fastest[name], time.perf_counter() - started_s)
    finally:
        await runtime.stop()
    return {name: num_texts / duration_s for name, duration_s in fastest.items()}


async def _embedded(backend: EmbeddingBackend, texts: Sequence[str]) -> Sequence[Any]:
    call = CallContext(Caller(), time.monotonic() + _TIMEOUT_S, 0, _Inline())
    request = EmbeddingRequest(tuple(texts), truncation=Truncation())
    return (await backend.embed(request, call)).vectors


async def _encoded(
    reference: SentenceTransformer, texts: Sequence[str], batch_size: int
) -> Sequence[Any]:
    vectors: Any = reference.encode(texts, batch_size=batch_size)
    return list(vectors)
