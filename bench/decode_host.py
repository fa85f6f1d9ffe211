"""A process that decodes one stream of the embedded model on request.

`python -m bench.decode_host QUANTIZATION NUM_TOKENS` replies to each line of its standard input
with the tokens per second, measured without the time for the prompt.
"""

import os
import sys
import time
from pathlib import Path
from typing import Literal

from service.openmp import bound_spinning

bound_spinning()

from service.checkpoint import resolve  # noqa: E402  # may import torch, which reads the settings
from service.config import ServiceSettings  # noqa: E402
from service.domain.engine import Request  # noqa: E402
from service.domain.engine_settings import Quantization  # noqa: E402
from service.domain.sampling import SamplingParams  # noqa: E402
from service.engine.core import EngineCore  # noqa: E402
from service.engine.load import EngineOptions, load_engine  # noqa: E402

_PROMPT = tuple(range(1000, 1032))
_CACHE_BYTES = 2**26


def load(path: Path, cache_dir: Path, quantization: Quantization) -> EngineCore:
    core, _ = load_engine(
        EngineOptions(
            path,
            device="cpu",
            quantization=quantization,
            cache_dir=cache_dir,
            max_model_len=1024,
            kv_cache_memory_bytes=_CACHE_BYTES,
            prefix_caching=False,
            num_speculative_tokens=0,
        )
    )
    return core


def decode(core: EngineCore, request_id: int, num_tokens: int) -> float:
    """Decode `num_tokens` tokens. Return the tokens per second after the first one."""
    sampling = SamplingParams(temperature=0.0, min_tokens=num_tokens, max_tokens=num_tokens)
    core.add(request_id, Request(_PROMPT, sampling))
    core.step()  # the prompt, and the first token
    start = time.perf_counter()
    while core.has_unfinished:
        core.step()
    return (num_tokens - 1) / (time.perf_counter() - start)


def main(quantization: Literal["none", "int8"], num_tokens: int) -> None:
    # Output of libraries goes to the log. Only replies go to stdout.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    cache_dir = ServiceSettings.load([]).cache_dir
    core = load(resolve(None, cache_dir).path, cache_dir, quantization)
    for request_id, _ in enumerate(sys.stdin):
        print(decode(core, request_id, num_tokens), file=replies, flush=True)


if __name__ == "__main__":
    main("int8" if sys.argv[1] == "int8" else "none", int(sys.argv[2]))
