"""Docs pages are whole, and name only existing options, metrics, variables, events and reasons."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from chatrpc.v1 import errors_pb2
from chatrpc_cli.__main__ import app
from gateway_http.config import Settings as GatewaySettings
from service.config import ServiceSettings
from tests.support.exported_metrics import exported, metrics_in
from tests.support.log_events import log_events
from tests.support.process_options import old_options, options, unknown_variables

ROOT = Path(__file__).parent.parent
# Pages that are not checked. Other tests check parity and conformance. The benchmarks name options
# of other servers.
_OTHERS = {"parity", "conformance", "benchmarks"}
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page.stem not in _OTHERS),
]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
# Options of docker, kubectl, vLLM, Ray and our benchmarks.
_OF_OTHERS = {
    "allowed-media-domains",
    *("build-arg", "platform", "profile", "scale", "raw", "grpc", "url", "help"),
    *("headless", "head", "address", "tool-call-parser"),
}
_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]+)")
_VARIABLE = re.compile(r"\bCHATRPC_(?:SERVICE|GATEWAY)_[A-Z][A-Z0-9_]+\b")
_MERGE = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")


def terminal_options() -> set[str]:
    """Return the options of `chatrpc` and of its commands."""

    def found(command: Any) -> Iterator[str]:
        for parameter in command.params:
            yield from (name.removeprefix("--") for name in parameter.opts)
        for each in getattr(command, "commands", {}).values():
            yield from found(each)

    return set(found(typer.main.get_command(app)))


def page_ids(page: Path) -> str:
    return page.name


def test_pages_have_no_marks_of_a_merge() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert [page.name for page in pages if _MERGE.search(page.read_text())] == []


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_options_named_in_pages_exist(page: Path) -> None:
    kinds = (ServiceSettings, GatewaySettings)
    processes = {name for kind in kinds for name in options(kind) | old_options(kind)}
    known = processes | {f"no-{name}" for name in processes} | terminal_options() | _OF_OTHERS
    named = {name for code in _CODE.findall(page.read_text()) for name in _OPTION.findall(code)}
    assert named <= known


# The page about profiling names functions of the kernels.
@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "profiling"], ids=page_ids)
def test_metrics_named_in_pages_exist(page: Path) -> None:
    names = exported()
    families = {re.sub("_(bucket|sum|count|total)$", "", name) for name in names}
    named = {
        name
        for code in _CODE.findall(page.read_text())
        for name in metrics_in(code)
        if not re.match("chatrpc_(process|cli)|vllm_engine", name)  # packages
    }
    assert named <= names | families | {"process_"}


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_variables_named_in_pages_are_settings(page: Path) -> None:
    assert not unknown_variables(dict.fromkeys(_VARIABLE.findall(page.read_text()), ""))


def section(title: str) -> str:
    """Return a section of docs/operations.md with its subsections."""
    _, _, rest = OPERATIONS.partition(f"\n## {title}\n")
    assert rest
    return rest.partition("\n## ")[0]


def first_column(text: str) -> set[str]:
    return {name for line in text.splitlines() if line.startswith("| `")
            for name in _CODE.findall(line.split("|")[1])}  # fmt: skip


def test_runbook_has_each_warning_and_error_event() -> None:
    serious = {event.name for event in log_events() if event.level not in {"debug", "info"}} | {
        "native_message"
    }
    assert first_column(section("Runbook")) == serious


@pytest.mark.parametrize("title", ["Runbook", "Logs"])
def test_events_named_in_pages_are_logged(title: str) -> None:
    logged = {event.name for event in log_events()} | {"native_message"}
    endings = ("_failed", "_finished", "_started", "_rejected", "_cut", "_unavailable", "_message")
    named = {code for code in _CODE.findall(section(title)) if code.endswith(endings)}
    assert named <= logged


def test_alerts_of_the_rules_have_rows_in_the_page() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "monitoring" / "alerts.yaml").read_text())
    names = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    assert first_column(section("Alerts")) == names


def test_error_reasons_are_explained_in_the_page() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    for value in errors_pb2.DESCRIPTOR.enum_types_by_name["ErrorReason"].values:
        reason = value.name.removeprefix("ERROR_REASON_")
        assert reason == "UNSPECIFIED" or f"`{reason}`" in text


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_links_between_pages_have_targets(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]*)(?:#[^)]*)?\)", page.read_text()):
        if target and not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_linked_anchors_are_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]*)\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            other = (page.parent / target) if target else page
            assert anchor in {slug(line) for line in headings(other)}, f"{target}#{anchor}"


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)


def slug(heading: str) -> str:
    """Return the anchor that GitHub makes for a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
