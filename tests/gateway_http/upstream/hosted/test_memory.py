"""The memory of hosted models, before and after their start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway_http.upstream.hosted.memory import PROCESS_BYTES, estimated_bytes, resident_bytes
from tests.fakes.wait import block_until

SIZE = 3200


def checkpoint(directory: Path, config: object) -> str:
    (directory / "model-00001.safetensors").write_bytes(bytes(SIZE // 2))
    (directory / "model-00002.safetensors").write_bytes(bytes(SIZE // 2))
    (directory / "tokenizer.json").write_bytes(bytes(100))
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


@pytest.mark.parametrize(
    ("config", "arguments", "num_bytes"),
    [
        ({"dtype": "bfloat16"}, [], SIZE),
        ({"torch_dtype": "bfloat16"}, ["--dtype", "float32"], 2 * SIZE),
        ({"dtype": "float32"}, ["--dtype=bfloat16"], SIZE // 2),
        ({"dtype": "bfloat16"}, ["--quantization", "int8"], 1650),
        ({"dtype": "bfloat16"}, ["--quantization", "int4", "--dtype", "float32"], 850),
        ({"dtype": "bfloat16", "quantization_config": {}}, ["--dtype", "float32"], SIZE),
        ({}, ["--quantization", "int8"], SIZE),
        ([], ["--quantization"], SIZE),
    ],
)
def test_estimate_is_the_size_of_the_weights_in_their_precision(
    tmp_path: Path, config: object, arguments: list[str], num_bytes: int
) -> None:
    model = checkpoint(tmp_path, config)
    assert estimated_bytes(model, arguments) == PROCESS_BYTES + num_bytes


def test_estimate_of_a_file_is_its_size(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(bytes(77))
    assert estimated_bytes(str(file), ["--dtype", "float32"]) == PROCESS_BYTES + 77


def test_estimate_of_a_model_that_is_no_path_has_no_weights() -> None:
    assert estimated_bytes("org/name", []) == PROCESS_BYTES


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_memory_of_a_process_includes_its_descendants() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    assert resident_bytes(os.getpid()) > 0
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        block_until(lambda: bool(children.read_text()))
        grandchild = int(children.read_text())
        block_until(lambda: resident_bytes(process.pid) > resident_bytes(grandchild) > 0)
        assert process.stdin
        process.stdin.close()
    assert resident_bytes(process.pid) == 0
