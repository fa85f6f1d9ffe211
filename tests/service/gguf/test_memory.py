"""The memory of a conversion does not grow with the model."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fakes.gguf_files import byte_level_vocab, write_gguf

pytestmark = pytest.mark.slow

HIDDEN, VOCAB = 64, 260
CODE = (
    "import sys; from pathlib import Path; from service.gguf.convert import convert;"
    "convert(Path(sys.argv[1]), Path(sys.argv[2]), {});"
    # The peak of getrusage would include that of the process that started this one.
    "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
)


def write(path: Path, mlp: int) -> Path:
    keys = {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": HIDDEN,
        "feed_forward_length": mlp,
        "attention.head_count": 4,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    square = (HIDDEN, HIDDEN)
    shapes = {
        "token_embd.weight": (VOCAB, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.attn_q.weight": square,
        "blk.0.attn_k.weight": square,
        "blk.0.attn_v.weight": square,
        "blk.0.attn_output.weight": square,
        "blk.0.ffn_norm.weight": (HIDDEN,),
        "blk.0.ffn_gate.weight": (mlp, HIDDEN),
        "blk.0.ffn_up.weight": (mlp, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, mlp),
    }
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    return write_gguf(path, "llama", keys, tensors, tokenizer=byte_level_vocab(VOCAB))


def peak_bytes(path: Path, directory: Path) -> int:
    command = [sys.executable, "-c", CODE, str(path), str(directory)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_peak_memory_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    """The models have 8 000 and 25 million parameters: 100 MB in the file, 50 MB converted."""
    small = peak_bytes(write(tmp_path / "small.gguf", 32), tmp_path / "small")
    large = peak_bytes(write(tmp_path / "large.gguf", 2**17), tmp_path / "large")
    assert (tmp_path / "large" / "model.safetensors").stat().st_size > 50_000_000
    assert large - small < 8_000_000
