"""The model of a run, and the files that are made from it."""

from pathlib import Path

import pytest

from bench.model import Model, of_options
from bench.peers.environment import InstallError
from tests.bench.models import tiny


@pytest.mark.parametrize(
    ("shape", "path", "gguf", "has_own_vocabulary", "message"),
    [
        ("llama-1b", Path("x"), None, False, "--shape and --model exclude each other"),
        (None, None, Path("x.gguf"), False, "--gguf needs --model"),
        (None, None, None, True, "--own-vocabulary needs --shape"),
        ("llama-9b", None, None, False, "unknown shape llama-9b: .*llama-1b.*"),
        (None, Path("/nowhere"), None, False, "--model /nowhere has no config.json"),
    ],
)
def test_contradicting_options_are_rejected(
    shape: str | None, path: Path | None, gguf: Path | None, has_own_vocabulary: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        of_options(shape, path, gguf, has_own_vocabulary=has_own_vocabulary)


def test_options_name_the_model() -> None:
    def name(shape: str | None, *, own: bool = False) -> str:
        return of_options(shape, None, None, has_own_vocabulary=own).name

    assert name(None) == "smollm2-135m-instruct"
    assert name("llama-1b") == "llama-1b"
    assert name("llama-1b", own=True) == "llama-1b-own-vocabulary"


def test_given_checkpoint_without_a_gguf_file_has_no_file_for_llama_cpp(tmp_path: Path) -> None:
    model = Model.given(tiny(tmp_path).source(), None)
    assert model.argument() == str(tmp_path / "bf16")
    with pytest.raises(InstallError, match="need its --gguf"):
        model.source_gguf()


@pytest.mark.slow
def test_compressed_checkpoint_is_made_once(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    made = model.checkpoint("int8")
    assert (made / "config.json").is_file()
    changed = (made / "config.json").stat().st_mtime_ns
    assert model.checkpoint("int8") == made
    assert (made / "config.json").stat().st_mtime_ns == changed


@pytest.mark.slow
def test_checkpoint_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    (tmp_path / "bf16" / "config.json").unlink()
    with pytest.raises(InstallError, match="the checkpoint int4 cannot be made"):
        model.checkpoint("int4")
    assert not (tmp_path / "int4").exists()
