"""The page made from a run: its tables and plots. Making it again changes nothing."""

from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from bench import report, results
from bench.results import Bounds, Sample
from tests.bench import runs


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    report.publish(runs.results(), tmp_path)
    return tmp_path


@pytest.fixture
def page(docs: Path) -> str:
    return (docs / "benchmarks.md").read_text()


def test_report_writes_each_file(docs: Path) -> None:
    assert [path.name for path in sorted(docs.iterdir())] == ["benchmarks", "benchmarks.md"]
    assert sorted(path.name for path in (docs / "benchmarks").iterdir()) == [
        "tiny-latency.svg",
        "tiny-life.svg",
        "tiny-throughput.svg",
        "tiny.json",
    ]


def test_rendering_the_published_results_changes_no_file(docs: Path) -> None:
    before = {path: path.read_bytes() for path in docs.rglob("*.*")}
    report.render(docs)
    assert {path: path.read_bytes() for path in docs.rglob("*.*")} == before


def test_each_model_and_kind_of_machine_has_a_section(docs: Path) -> None:
    other = runs.results()
    other.machine = msgspec.structs.replace(other.machine, flags=["amx_int8"])
    other.started = "2026-01-01T00:00:00+00:00"
    report.publish(other, docs)
    page = (docs / "benchmarks.md").read_text()
    sections = [line for line in page.splitlines() if line.startswith("## A tiny model")]
    assert sections == ["## A tiny model, without AMX", "## A tiny model, with AMX"]
    assert (docs / "benchmarks" / "tiny-amx.json").is_file()


def test_report_shows_medians_with_their_spread(page: str) -> None:
    assert "| chatrpc | **400** (200-600) |" in page
    assert "| Peer, bf16 | **200** (100-300) |" in page


def test_ratios_compare_our_server_with_each_peer(page: str) -> None:
    [row] = [
        line for line in page.splitlines() if line.startswith("| chatrpc / Peer, bf16 | **2**")
    ]
    # Our throughput divided by theirs, and their times divided by ours, are all 2.
    assert row.count("**2** (2-2)") == 4
    assert "**1** (1-1)" in row  # the stall is the same for both


def test_report_names_the_failures(page: str) -> None:
    assert "| Broken | **" not in page
    assert "invalid" in page
    assert "Not measured completely: does not start: exit code 1: no" in page


def test_report_shows_the_cost_of_each_layer(page: str) -> None:
    assert "| bare engine | **440** (220-660) |  |" in page
    assert "| over gRPC | **420** (210-630) | +4.5% |" in page
    assert "| through the gateway | **400** (200-600) | +4.8% |" in page


def test_report_leaves_out_sections_without_figures(page: str, tmp_path: Path) -> None:
    assert "### Open loop" in page
    assert "### Cost of the layers" in page
    assert "### Drafts" not in page
    without = runs.results()
    without.samples = [s for s in without.samples if s.load == "c1" and "/" not in s.target]
    report.publish(without, tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "### Open loop" not in page
    assert "### Cost of the layers" not in page


def test_report_shows_what_bounds_the_speed(tmp_path: Path) -> None:
    found = runs.results()
    figures = {
        "num_prompt_tokens": 100.0,
        "num_cached_tokens": 0.0,
        "num_output_tokens": 64.0,
        "num_requests": 1.0,
        "num_clients": 1.0,
        "tpot_ms.p50": 0.01,
        "ttft_ms.p50": 0.1,
        "duration_s": 0.001,
        "output_tok_s": 64000.0,
    }
    found.samples = [Sample("chatrpc", "c1", 0, figures)]
    weight_bytes = {"weight_bytes": 100_000, "arithmetic": "int8"}
    found.servers["chatrpc"] = msgspec.structs.replace(found.servers["chatrpc"], **weight_bytes)
    report.publish(found, tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "The machine reads 20 GB/s from memory, and computes 1 TOP/s in int8" in page
    assert "| chatrpc | 57% | 20% | bytes 36% |  |  |  |" in page


def test_report_shows_the_knees(tmp_path: Path) -> None:
    found = runs.results()
    found.bounds = Bounds(2000.0, 200.0)
    found.servers["peer"] = msgspec.structs.replace(found.servers["peer"], knee=2.5)
    found.loads["rate-2.5"] = "2.5 requests a second"
    times = {f"{name}__{p}": 10.0 for name in ("ttft_ms", "tpot_ms") for p in ("p50", "p99")}
    found.samples.append(runs.sample("peer", "rate-2.5", 0, output_tok_s=70.0, rate=2.5, **times))
    report.publish(found, tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "within bounds: TTFT p99 <= 2000 ms, TPOT p50 <= 200 ms." in page
    assert "| Peer, bf16 | 2.5 |" in page
    assert "| Peer, bf16, 2.5 requests a second | 70 | 10 | 10 | 10 | 10 |" in page


def test_report_has_no_placeholders_of_the_template(page: str) -> None:
    assert "$" not in page


def test_plots_name_each_measured_server(docs: Path) -> None:
    text = (docs / "benchmarks" / "tiny-throughput.svg").read_text()
    root = ET.fromstring(text)  # noqa: S314  # our own file
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"chatrpc", "Peer, bf16", "Broken", "400", "no figure"} <= texts
    assert "prefers-color-scheme:dark" in text


def test_results_of_several_runs_are_merged(tmp_path: Path) -> None:
    first, second = runs.results(), runs.results()
    second.samples = [s for s in second.samples if s.target == "peer"]
    second.servers = {"peer": runs.facts("Peer, bf16", ready_s=9.0)}
    both = results.merged([first, second])
    assert both.num_rounds == 4
    assert both.servers["peer"].ready_s == 9.0
    assert both.servers["chatrpc"].ready_s == 3.0
    assert {s.round for s in both.samples if s.target == "peer"} == {0, 1, 2, 3}
