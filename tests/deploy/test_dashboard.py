"""The dashboard uses exported metrics and their labels."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gateway_http.metrics import Metrics as GatewayMetrics
from service.metrics import Metrics as ServiceMetrics
from tests.support.exported_metrics import exported, metrics_in

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "deploy" / "grafana" / "chatrpc.json").read_text()
)
PANELS: list[dict[str, Any]] = [p for p in DASHBOARD["panels"] if p["type"] != "row"]
VARIABLES: list[dict[str, Any]] = DASHBOARD["templating"]["list"]
EXPRESSIONS: list[str] = [
    *(target["expr"] for panel in PANELS for target in panel["targets"]),
    *(variable["definition"] for variable in VARIABLES if variable["type"] == "query"),
]

_BY = re.compile(r"by \(([^)]*)\)")
# Labels that Prometheus adds, and the label of a histogram's buckets.
_ADDED = {"instance", "le"}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_dashboard_uses_exported_metrics(expression: str) -> None:
    asked = metrics_in(expression)
    assert asked
    assert asked <= exported()


def test_unknown_metric_is_detected() -> None:
    assert not metrics_in('rate(chatrpc_nothing_total{instance="a"}[1m])') <= exported()


def test_grouping_uses_labels_of_the_metrics() -> None:
    service, gateway = ServiceMetrics(), GatewayMetrics()
    metrics = (
        *(service.handled, service.finished, gateway.requests, gateway.disconnects),
        *(gateway.upstream_requests, gateway.cut_connections, gateway.failures),
    )
    labels = {label for metric in metrics for label in metric._labelnames}
    for expression in EXPRESSIONS:
        for group in _BY.findall(expression):
            assert set(group.split(", ")) <= labels | _ADDED | {"version"}


def test_panels_do_not_overlap_and_have_unique_names() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


def test_expressions_use_defined_variables() -> None:
    known = {variable["name"] for variable in VARIABLES} | {"__rate_interval"}
    for expression in EXPRESSIONS:
        assert set(re.findall(r"\$(\w+)", expression)) <= known
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing)


def test_variable_all_selects_each_known_value() -> None:
    """`All` excludes other programs with metrics of the same name, for example `process_`.

    `All` models includes requests without a model, for example a list of models.
    """
    choices = {v["name"]: v for v in VARIABLES if v.get("includeAll")}
    assert set(choices) == {"model", "service", "gateway"}
    assert choices["model"].pop("allValue") == ".*"
    for variable in choices.values():
        assert "allValue" not in variable
        assert variable["multi"]
    for expression in EXPRESSIONS:
        assert not re.search(r'[^~]"\$(model|service|gateway)"', expression)  # a list needs =~


def test_panel_unit_fits_its_metric() -> None:
    for panel in PANELS:
        unit = panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            expression = target["expr"]
            if "_seconds_bucket" in expression:
                assert unit == "s", panel["title"]
            elif " / " in expression or "_ratio" in expression:
                assert unit == "percentunit", panel["title"]
            elif "_bytes" in expression:
                assert unit == "bytes", panel["title"]
            else:
                is_rate = "rate(" in expression and "_bucket" not in expression
                is_cpu = "process_cpu_seconds" in expression
                assert (unit in {"reqps", "cps", "ops"}) is (is_rate and not is_cpu), panel["title"]


def test_gateway_panels_filter_by_the_selected_model() -> None:
    """Panels of requests filter by model. Connections and services do not belong to one model."""
    about_all = ("in_flight", "cut_connections", "tls_handshake", "upstream_")
    for expression in EXPRESSIONS:
        if "chatrpc_gateway_" in expression and expression.startswith(("sum", "hist")):
            is_about_all = any(name in expression for name in about_all)
            assert ('model=~"$model"' in expression) is not is_about_all, expression


def test_dashboard_shows_saturation_and_failures_by_reason() -> None:
    shown = " ".join(EXPRESSIONS)
    for state in ("running", "waiting"):
        assert re.search(f"chatrpc_sequences_{state}{{.*/.*chatrpc_sequences_{state}_limit", shown)
    assert "by (reason) (rate(chatrpc_gateway_request_failures_total" in shown
    assert "probes" not in shown
