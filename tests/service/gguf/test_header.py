import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st

from service.checkpoint import resolve
from service.errors import ModelLoadError
from service.gguf.header import read_header
from tests.fakes.gguf_files import byte_level_vocab, write_gguf

KEYS = {
    "block_count": 1,
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 32,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
}
SHAPES = {
    "token_embd.weight": (260, 32),
    "output_norm.weight": (32,),
    "blk.0.attn_norm.weight": (32,),
    "blk.0.attn_q.weight": (32, 32),
    "blk.0.attn_k.weight": (16, 32),
    "blk.0.attn_v.weight": (16, 32),
    "blk.0.attn_output.weight": (32, 32),
    "blk.0.ffn_norm.weight": (32,),
    "blk.0.ffn_gate.weight": (32, 32),
    "blk.0.ffn_up.weight": (32, 32),
    "blk.0.ffn_down.weight": (32, 32),
}
MAX_MEMORY = 2**28  # in bytes, allocated by Python for a file of 60 KB with any header


def small_file(path: Path) -> Path:
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
    vocab = byte_level_vocab(260)
    kind = GGMLQuantizationType.Q8_0
    return write_gguf(path, "llama", KEYS, tensors, kind=kind, tokenizer=vocab)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return small_file(tmp_path_factory.mktemp("gguf") / "whole.gguf").read_bytes()


def test_values_are_those_written(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"i": 7, "f": 0.1, "b": True, "s": "text", "l": ["a", "b"], "n": [1, 2]}
    path = write_gguf(tmp_path / "x.gguf", "llama", keys, {"t": np.ones((3, 5), np.float32)})
    header = read_header(path)
    assert {name: header.metadata[f"llama.{name}"] for name in keys} == keys
    tensor = header.tensors["t"]
    assert (tensor.shape, tensor.num_bytes) == ((3, 5), 60)
    raw = path.read_bytes()[tensor.offset : tensor.offset + tensor.num_bytes]
    assert raw == np.ones(15, np.float32).tobytes()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"", "ends within the magic number"),
        (b"GGML" + bytes(20), "not a GGUF file"),
        (b"GGUF", "ends within the version"),
        (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), "GGUF version 1"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big-endian"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 2**63, 0), "claims 9223372036854775808 tensors"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**63), "claims 9223372036854775808 metadata keys"),
        (struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 2**60), "bytes for the name of a metadata key"),
        (struct.pack("<4sIQQQ1sIQ", b"GGUF", 3, 0, 1, 1, b"k", 8, 2**40), "bytes for k"),
        (struct.pack("<4sIQQQ1sIQ", b"GGUF", 3, 0, 1, 1, b"k", 8, 2**20), "ends within k"),
        (struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 4, 2**60), "elements of k"),
        (struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 9, 1), "unknown type 9"),
        (struct.pack("<4sIQQQ1sI", b"GGUF", 3, 0, 1, 1, b"k", 13), "unknown type 13"),
        (struct.pack("<4sIQQQ1sI", b"GGUF", 3, 1, 0, 1, b"t", 99), "claims 99 dimensions"),
        (struct.pack("<4sIQQQ1sIQIQ", b"GGUF", 3, 1, 0, 1, b"t", 1, 4, 77, 0), "the type 77"),
        (struct.pack("<4sIQQQ1sIQIQ", b"GGUF", 3, 1, 0, 1, b"t", 1, 4, 2, 0), "blocks of 32"),
        (
            struct.pack("<4sIQQQ1sIQIQ", b"GGUF", 3, 1, 0, 1, b"t", 1, 4, 0, 0),
            "within the tensor t",
        ),
        (struct.pack("<4sIQQQ1sIQIQ", b"GGUF", 3, 1, 0, 1, b"t", 1, 4, 0, 32), "lies at 32"),
    ],
)
def test_damaged_header_is_rejected(head: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(head)
    with pytest.raises(ModelLoadError, match=message):
        read_header(tmp_path / "x.gguf")


def rejection(path: Path, cache_dir: Path) -> str:
    """Return the message with which a file is rejected; empty if it is converted."""
    try:
        resolve(str(path), cache_dir)
    except ModelLoadError as error:
        return str(error)
    return ""


@pytest.mark.hypothesis
def test_any_damage_ends_in_success_or_one_line(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("fuzz")
    start_of_values = len(whole) - sum(
        (np.prod(shape) * 4 if len(shape) == 1 else np.prod(shape) // 32 * 34)
        for shape in SHAPES.values()
    )
    positions = st.one_of(
        st.integers(0, 2000), st.integers(0, int(start_of_values)), st.integers(0, len(whole) - 1)
    )
    edits = st.lists(st.tuples(positions, st.binary(min_size=1, max_size=8)), max_size=4)

    @given(edits=edits, length=st.integers(0, len(whole)) | st.just(len(whole)))
    def damage(edits: list[tuple[int, bytes]], length: int) -> None:
        content = bytearray(whole)
        for position, new in edits:
            content[position : position + len(new)] = new
        path = directory / "damaged.gguf"
        path.write_bytes(content[:length])
        tracemalloc.start()
        message = rejection(path, directory / "cache")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert "\n" not in message
        assert len(message) < 1000
        assert peak < MAX_MEMORY

    damage()
