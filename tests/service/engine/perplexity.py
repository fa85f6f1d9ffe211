"""Measures a model's perplexity in each precision, on texts that ship with the tests.

`python -m tests.service.engine.perplexity [DIRECTORY]` prints it for each precision of a
checkpoint and each text, by default the embedded model's.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from service.checkpoint import resolve
from service.config import ServiceSettings
from service.domain.engine import Request
from service.domain.sampling import SamplingParams
from service.engine.batch import ScheduledSequence
from service.engine.layout import Layout, SequenceRows
from service.engine.load import EngineOptions, load_model
from service.engine.model_runner import Model
from service.engine.sequence import Sequence as EngineSequence
from service.text.hf_tokenizer import load_tokenizer

WINDOW = 512

_DATA = Path(__file__).parents[2] / "data"
TEXT = _DATA / "perplexity.txt"  # prose, written for this measurement
TECHNICAL_TEXT = _DATA / "perplexity_technical.txt"  # in Markdown, about software
_BLOCK_SIZE = 16


def embedded_model(*, reads_gguf: bool = True) -> Path:
    """Return the embedded model as the service loads it, or with weights converted to bfloat16."""
    return resolve(None, ServiceSettings.load([]).cache_dir, reads_gguf=reads_gguf).path


def precisions(path: Path) -> dict[str, EngineOptions]:
    """Return the options of each precision by name. The reference is first."""
    return {
        "float32": EngineOptions(path, device="cpu", dtype="float32", quantization="none"),
        "bfloat16": EngineOptions(path, device="cpu", dtype="bfloat16", quantization="none"),
        "int8": EngineOptions(path, device="cpu", quantization="int8"),
        "default": EngineOptions(path, device="cpu"),
        "int8 cache": EngineOptions(path, device="cpu", kv_cache_dtype="int8"),
    }


def read_text(path: Path, text: Path = TEXT) -> list[int]:
    """Return a text as token ids of the model in `path`: about 4000 for `TEXT`.

    If the tokenizer begins every text with a special token, each window begins with it.
    """
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False)
    opening = tokenizer.encode("", add_special_tokens=True)
    length = WINDOW - len(opening)
    starts = range(0, len(ids), length)
    return [token for start in starts for token in (*opening, *ids[start : start + length])]


def windows(token_ids: Sequence[int], length: int) -> Iterator[Sequence[int]]:
    """Yield the text in windows. A last one with no token to predict is left out."""
    for start in range(0, len(token_ids) - 1, length):
        yield token_ids[start : start + length]


@torch.inference_mode()
def perplexity(model: Model, token_ids: Sequence[int], window: int = WINDOW) -> float:
    """Return the perplexity of a text, over all tokens except the first of each window.

    Each window is a separate sequence, computed in one step, with blocks from 0 on. The model's
    cache has the capacity for `window` tokens.
    """
    total, num_predicted = 0.0, 0
    for piece in windows(token_ids, window):
        rows = range(len(piece) - 1)
        logits = model.logits(model.forward(_single(piece), list(rows)))
        targets = torch.tensor(piece[1:], device=logits.device)
        losses = F.cross_entropy(logits, targets, reduction="none")
        total += losses.double().sum().item()
        num_predicted += len(rows)
    return math.exp(total / num_predicted)


def measure(options: EngineOptions, token_ids: Sequence[int], window: int = WINDOW) -> float:
    """Return the `perplexity` of the model that is loaded with `options`."""
    loaded = load_model(options)
    model = loaded.finish(-(-window // _BLOCK_SIZE), _BLOCK_SIZE, window)
    return perplexity(model, token_ids, window)


def table(figures: dict[str, float]) -> str:
    """Return a table of each precision's perplexity and its increase over the first one's."""
    reference = next(iter(figures.values()))
    lines = [f"{'precision':<12}{'perplexity':>12}{'cost':>10}"]
    lines += [
        f"{name:<12}{value:>12.4f}{value / reference - 1:>+10.3%}"
        for name, value in figures.items()
    ]
    return "\n".join(lines)


def _single(token_ids: Sequence[int]) -> Layout:
    """Return the layout of one sequence, of which no token has been computed."""
    num_tokens = len(token_ids)
    sequence = EngineSequence(0, Request(tuple(token_ids), SamplingParams()), num_tokens + 1)
    sequence.block_ids = list(range(num_tokens))  # enough for any block size
    scheduled = ScheduledSequence(sequence, num_tokens, is_sampled=True)
    return Layout((SequenceRows(scheduled, 0, num_tokens, num_tokens),))


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else embedded_model()
    for text in (TEXT, TECHNICAL_TEXT):
        token_ids = read_text(path, text)
        figures = {name: measure(options, token_ids) for name, options in precisions(path).items()}
        print(f"{path.name}, {text.name}, {len(token_ids)} tokens in windows of {WINDOW}")  # noqa: T201  # the output of a command
        print(table(figures))  # noqa: T201  # as above


if __name__ == "__main__":
    main()
