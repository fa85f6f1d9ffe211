"""Writes a checkpoint with random weights of a shape."""

import json
import shutil
from pathlib import Path
from zlib import crc32

import torch
from safetensors.torch import save_file

from bench.checkpoints.files import INDEX, write_json
from bench.shapes import Shape

# The memory that the writer needs is about that of one file.
_MAX_FILE_BYTES = 2**30
# The standard deviation of embeddings. The outputs of the layers are larger by far. So the most
# likely token is not the last one again, although embeddings and head are often the same weight.
_EMBEDDING_STD = 0.02
_EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write(shape: Shape, tokenizer: Path, target: Path, *, has_own_vocabulary: bool = False) -> None:
    """Write a checkpoint in bfloat16. Equal arguments give equal files.

    Args:
        tokenizer: The checkpoint whose tokenizer and special tokens the new one gets.
        target: The directory, which is created.
        has_own_vocabulary: Use the shape's own vocabulary size instead of the tokenizer's. The
            tokenizer then gets words that no text contains, so that each token has a text.

    Raises:
        ValueError: The tokenizer has more tokens than the shape's own vocabulary.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER_FILES:
        shutil.copy(tokenizer / name, target)
    theirs = json.loads((tokenizer / "config.json").read_text())
    vocab_size = shape.vocab_size if has_own_vocabulary else int(theirs["vocab_size"])
    if has_own_vocabulary:
        _pad_vocabulary(target / "tokenizer.json", vocab_size)
    special = {name: theirs[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(target / "config.json", {**shape.config(vocab_size), **special})
    write_json(target / "generation_config.json", {"do_sample": False, **special})
    _write_weights(shape.tensors(vocab_size), target)


def _write_weights(sizes: dict[str, tuple[int, ...]], target: Path) -> None:
    files = _files(sizes)
    file_names = [
        f"model-{index:05}-of-{len(files):05}.safetensors" for index in range(1, len(files) + 1)
    ]
    for file_name, names in zip(file_names, files, strict=True):
        tensors = {name: _weight(name, sizes[name]) for name in names}
        save_file(tensors, target / file_name, metadata={"format": "pt"})
    of_tensors = dict(zip(file_names, files, strict=True))
    weight_map = {name: file for file, names in of_tensors.items() for name in names}
    total = sum(_num_bytes(size) for size in sizes.values())
    write_json(target / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _files(sizes: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """Distribute the tensors over files of limited size. A file has at least one tensor."""
    files: list[list[str]] = [[]]
    num_bytes = 0
    for name, size in sizes.items():
        num_bytes += _num_bytes(size)
        if files[-1] and num_bytes > _MAX_FILE_BYTES:
            files.append([])
            num_bytes = _num_bytes(size)
        files[-1].append(name)
    return files


def _num_bytes(size: tuple[int, ...]) -> int:
    return 2 * torch.Size(size).numel()


def _weight(name: str, size: tuple[int, ...]) -> torch.Tensor:
    """Return a weight in bfloat16. Its seed is its name, so it does not depend on other weights."""
    weight = torch.empty(size, dtype=torch.bfloat16)
    if len(size) == 1:
        return weight.fill_(1.0)
    # A row of this length keeps the scale of its input.
    std = _EMBEDDING_STD if name in _EMBEDDINGS else size[1] ** -0.5
    return weight.normal_(0.0, std, generator=torch.Generator().manual_seed(crc32(name.encode())))


def _pad_vocabulary(file: Path, vocab_size: int) -> None:
    tokenizer = json.loads(file.read_text())
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    num_tokens = max(vocabulary.values()) + 1
    if num_tokens > vocab_size:
        raise ValueError(f"the tokenizer has {num_tokens} tokens, the shape only {vocab_size}")
    # `Ġ` is the space in the alphabet of byte-level tokenizers. Without merges, no text is encoded
    # to these tokens.
    vocabulary |= {f"\u0120word{index}": index for index in range(num_tokens, vocab_size)}
    file.write_text(json.dumps(tokenizer, ensure_ascii=False))
