"""A GGUF file to a checkpoint of safetensors, through transformers.

Importing it takes 4 s, and what transformers imports at its first use another 3; the rest of a
conversion of 135 million parameters takes 6.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import structlog
import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    modeling_gguf_pytorch_utils,
)
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.integrations.gguf.reader import read_gguf_metadata
from transformers.utils import logging as transformers_logging

from service.errors import ModelLoadError

# Values of `tokenizer.ggml.pre` for which llama.cpp sets every digit apart before it applies
# GPT-2's pattern; transformers applies the pattern alone.
_DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_GPT2_PATTERN = {"default", "gpt-2"}

_log = structlog.get_logger()


def convert(file: Path, directory: Path, generation: Mapping[str, Any]) -> None:
    """Write the model of the GGUF `file` into `directory`: bf16 weights, tokenizer, configs.

    The weights are dequantised, since engines here bring their own arithmetic. `generation` goes
    into generation_config.json beside the tokens that end an answer.

    Raises:
        ModelLoadError: the file lacks weights that its kind of model has.
        Exception: whatever gguf and transformers raise on a damaged or unknown file.
    """
    metadata, tensors = read_gguf_metadata(str(file))
    with _quick_and_quiet():
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            config=config,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
        model, loading = loaded
        # transformers has filled these with random numbers.
        if missing := sorted(loading["missing_keys"]):
            raise ModelLoadError(f"{file} lacks {len(missing)} of its weights, {missing[0]} first.")
        _warn_of_lost_rope_scaling(metadata, tensors, config)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)
        _restore_pre_tokenizer(tokenizer, metadata)
        eos_token_ids = _eos_token_ids(metadata, model.generation_config.eos_token_id)
        model.generation_config.update(eos_token_id=eos_token_ids, **generation)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def _restore_pre_tokenizer(tokenizer: PreTrainedTokenizerFast, metadata: dict[str, Any]) -> None:
    """Split text as the vocabulary was trained to have it split.

    SmolLM's, say, splits digits off: "a  1" into "a", "  " and "1", not "a", " " and " 1".
    """
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        return  # SentencePiece vocabularies are not split before
    kind = metadata.get("tokenizer.ggml.pre", "default")
    if kind in _DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    elif kind not in GGUF_PRE_TOKENIZER_SPLITS.keys() | _GPT2_PATTERN:
        _log.warning("gguf_pre_tokenizer_unknown", kind=kind, used="gpt-2")


def _warn_of_lost_rope_scaling(
    metadata: dict[str, Any], tensors: tuple[str, ...], config: PreTrainedConfig
) -> None:
    """transformers reads rotary scaling from the files of some architectures only."""
    kind = metadata.get(f"{metadata['general.architecture']}.rope.scaling.type", "none")
    rope = config.to_dict().get("rope_parameters") or {}
    has_scaling = kind != "none" or "rope_freqs.weight" in tensors
    if has_scaling and rope.get("rope_type", "default") == "default":
        _log.warning("gguf_rope_scaling_lost", effect="answers to long prompts get worse")


def _eos_token_ids(metadata: dict[str, Any], known: int | list[int] | None) -> list[int] | None:
    """Every token that ends an answer; `known` are those that transformers found.

    Chat models often end a turn (eot) with another token than a text (eos), and transformers reads
    the latter alone: such a model would never stop.
    """
    ids = {metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    ids.update(known if isinstance(known, list) else [known])
    return sorted(token_id for token_id in ids if token_id is not None) or None


class _PlainReader(gguf.GGUFReader):
    """Reads a file in 1.7 s, not 5: numpy's memmap is slow to slice, and this is 250 000 slices."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.view(np.ndarray) if name == "data" else value)


@contextmanager
def _quick_and_quiet() -> Iterator[None]:
    """Let transformers 5.23 convert in 6 s what takes it 20, and without its progress bars.

    It reads the file once for the config and once for the weights, builds the same table of tensor
    names for every module of the model (8 s), and one bar heeds no setting.
    """
    had_progress_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # theirs
    try:
        with (
            _replaced(gguf, "GGUFReader", functools.cache(_PlainReader)),
            _replaced(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
            _replaced(modeling_gguf_pytorch_utils, "tqdm", lambda items, **_: items),
        ):
            yield
    finally:
        if had_progress_bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def _replaced(module: ModuleType, name: str, value: Callable[..., Any]) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)
