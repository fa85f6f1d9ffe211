"""The memory of hosted models: an estimate before the start, and the resident memory after it."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

# A service whose model has 0.1 MB had a resident memory of 375 MiB: mostly torch and the tokenizer.
PROCESS_BYTES = 400 << 20

# Bytes of a weight by the option `--quantization`, with a scale for each group of weights, and by
# the option `--dtype`.
_QUANTIZED_BYTES = {"int8": 1 + 1 / 32, "int4": 0.5 + 1 / 32}
_DTYPE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")


def estimated_bytes(model: str, arguments: Sequence[str]) -> int:
    """Return about how much memory a service needs for a model.

    It is the size of the weights' files, scaled to the precision that the options ask for, and the
    memory of a process without a model. The KV cache is not included. A model that is not a local
    file or directory counts as one without weights.

    Args:
        model: The value of the service's option `--model`.
        arguments: Further options of the service.
    """
    path = Path(model)
    try:
        files = [path] if path.is_file() else list(path.iterdir())
        num_bytes = sum(file.stat().st_size for file in files if file.suffix in _WEIGHT_SUFFIXES)
    except OSError:
        return PROCESS_BYTES
    return PROCESS_BYTES + int(num_bytes * _scale(path, arguments))


def _scale(path: Path, arguments: Sequence[str]) -> float:
    """Return the size of a weight in memory divided by its size in the checkpoint.

    It is 1 if either is unknown, and for a checkpoint that is quantized already.
    """
    config: object = None
    with suppress(OSError, ValueError, RecursionError):
        config = json.loads((path / "config.json").read_bytes())
    if not isinstance(config, dict) or "quantization_config" in config:
        return 1.0
    stored = _DTYPE_BYTES.get(str(config.get("dtype") or config.get("torch_dtype")))
    dtype = _DTYPE_BYTES.get(_value(arguments, "--dtype"))
    loaded = _QUANTIZED_BYTES.get(_value(arguments, "--quantization"), dtype)
    return 1.0 if stored is None or loaded is None else loaded / stored


def _value(arguments: Sequence[str], option: str) -> str:
    """Return the value of an option, written as `--option value` or `--option=value`."""
    value = ""
    for i, argument in enumerate(arguments):
        name, separator, rest = argument.partition("=")
        if name == option:
            value = rest if separator else "".join(arguments[i + 1 : i + 2])
    return value


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process and its descendants; 0 if it is unknown.

    Pages that processes share count for each of them. Only Linux reports these numbers.
    """
    return sum(map(_resident_bytes, _tree(pid)))


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):  # it has ended
        return 0


def _tree(pid: int) -> Iterator[int]:
    """Yield the ids of a process and its descendants."""
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in path.read_text().split():
                yield from _tree(int(child))
