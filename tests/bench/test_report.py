"""The page made from a run: its tables and plots. Making it again changes nothing."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench import report, results
from tests.bench import runs


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    report.publish(runs.results(), tmp_path)
    return tmp_path


@pytest.fixture
def page(docs: Path) -> str:
    return (docs / "benchmarks.md").read_text()


def test_report_writes_each_file(docs: Path) -> None:
    assert sorted(path.name for path in docs.iterdir()) == [
        "benchmarks-latency.svg",
        "benchmarks-life.svg",
        "benchmarks-throughput.svg",
        "benchmarks.json",
        "benchmarks.md",
    ]


def test_rendering_the_published_results_changes_no_file(docs: Path) -> None:
    before = {path.name: path.read_bytes() for path in docs.iterdir()}
    report.render(results.read(docs / "benchmarks.json"), docs)
    assert {path.name: path.read_bytes() for path in docs.iterdir()} == before


def test_report_shows_medians_with_their_spread(page: str) -> None:
    assert "| chatrpc | **400** (200-600) |" in page
    assert "| Peer, bf16 | **200** (100-300) |" in page


def test_ratios_compare_our_server_with_each_peer(page: str) -> None:
    [row] = [line for line in page.splitlines() if line.startswith("| Peer, bf16 | **2**")]
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
    assert "## Open loop" in page
    assert "## Variants" not in page
    without = runs.results()
    without.samples = [s for s in without.samples if s.load == "c1" and "/" not in s.target]
    report.render(without, tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "## Open loop" not in page
    assert "What the layers cost" not in page


def test_report_has_no_placeholders_of_the_template(page: str) -> None:
    assert "$" not in page


def test_plots_name_each_measured_server(docs: Path) -> None:
    text = (docs / "benchmarks-throughput.svg").read_text()
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
