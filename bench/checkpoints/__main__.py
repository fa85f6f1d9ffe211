"""Writes one checkpoint: `python -m bench.checkpoints COMMAND ...`.

It is a separate program, since it needs torch, and the load generator does not.
"""

from pathlib import Path

import typer

from bench.checkpoints import compressed, gguf_file, random
from bench.shapes import SHAPES
from service.checkpoint import EMBEDDED_MODEL, resolve
from service.config import ServiceSettings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def embedded() -> None:
    """Print the directory of the embedded model, which is converted if necessary."""
    typer.echo(_embedded())


@app.command(name="random")
def write_random(shape: str, target: Path, *, own_vocabulary: bool = False) -> None:
    random.write(SHAPES[shape], _embedded(), target, has_own_vocabulary=own_vocabulary)


@app.command()
def int8(source: Path, target: Path) -> None:
    compressed.convert(source, target, 8)


@app.command()
def int4(source: Path, target: Path) -> None:
    compressed.convert(source, target, 4)


@app.command()
def gguf(shape: str, source: Path, target: Path) -> None:
    gguf_file.write(SHAPES[shape], source, target)


def _embedded() -> Path:
    return resolve(EMBEDDED_MODEL, ServiceSettings.load([]).cache_dir).path


if __name__ == "__main__":
    app()
