"""The report of `python -m bench gpu`, and a quick run of it on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bench.gpu_results import (
    Environment,
    GpuReport,
    KernelCheck,
    Memory,
    ModelFigures,
    Parity,
    Prefill,
    ServedLoad,
    Steps,
    page,
)

ROOT = Path(__file__).parent.parent.parent
ENV = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"}


def report() -> GpuReport:
    environment = Environment("A GPU", 80.0, "9.0", "13.0", "2.13.0", "5.23.0", "3.11.7")
    figures = ModelFigures(
        "a-model",
        environment,
        [KernelCheck("32 heads", None), KernelCheck("9 heads", "wrong by nan")],
        Parity(24, 20, 1536, 1500, 0.001, 0.002, 0.25),
        [
            Steps("500 tokens, greedy", 32, 10.0, 1.0),
            Steps("500 tokens, greedy", 256, skipped="too few blocks"),
        ],
        [Prefill("1 x 512 tokens", 512, 0.5)],
        Memory(0.5, 1.0, 2.25, 80.0),
    )
    return GpuReport(
        "2026-01-01 00:00",
        is_quick=False,
        models=[figures],
        served=[
            ServedLoad("chatrpc", "1 client", {"output_tok_s": 123.4}),
            ServedLoad("vLLM", "1 client", fault="8 of 8 requests failed"),
        ],
        failures={"other-model": "out of memory"},
    )


def test_page_has_every_figure() -> None:
    text = page(report())
    for part in (
        "**other-model failed:** out of memory",
        "A GPU, 80 GiB, capability 9.0, CUDA 13.0",
        "- kernel, 32 heads: right",
        "- kernel, 9 heads: wrong by nan",
        "20 of 24 outputs are equal; 1500 of 1536 tokens",
        "0.0010, of transformers 0.0020; largest difference between the two 0.250",
        "| 500 tokens, greedy | 32 | 10 | 3200 | 1 |",
        "| 500 tokens, greedy | 256 | too few blocks |  |  |",
        "| 1 x 512 tokens | 512 | 0.5 | 1024 |",
        "weights 0.50, cache 1.00, peak 2.25 of 80.0 GiB",
        "| chatrpc | 1 client | 123 |",
        "| vLLM | 1 client | 8 of 8 requests failed |",
    ):
        assert part in text


def test_report_is_read_back() -> None:
    assert msgspec.json.decode(msgspec.json.encode(report()), type=GpuReport) == report()


def bench_gpu(out: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bench", "gpu", "--quick", "--out", str(out), *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, check=False)


def test_unknown_device_is_rejected(tmp_path: Path) -> None:
    done = bench_gpu(tmp_path, "--device", "tpu")
    assert done.returncode == 2
    assert "unknown device tpu" in done.stderr


@pytest.mark.slow
def test_quick_run_on_a_cpu_measures_the_embedded_model(tmp_path: Path) -> None:
    done = bench_gpu(tmp_path, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    [model] = found["models"]
    assert model["parity"]["num_equal_tokens"] > 0
    assert all(steps["ms"] > 0 for steps in model["steps"])
    assert [served["fault"] for served in found["served"]] == [None]
    assert done.stdout.strip() == (tmp_path / "gpu.md").read_text().strip()


@pytest.mark.slow
def test_model_that_fails_is_reported(tmp_path: Path) -> None:
    done = bench_gpu(tmp_path, "--device", "cpu", "--no-servers", "--model", str(tmp_path / "none"))
    assert done.returncode == 1
    assert "failed:** " in done.stdout
    assert "There is no model" in done.stdout
