"""Alert rules use exported metrics, and each has a section in the runbook."""

import re
from typing import Any

import pytest
import yaml

from chatrpc_process.reload_metrics import ReloadMetrics
from gateway_http.metrics import Metrics as GatewayMetrics
from service.metrics import Metrics as ServiceMetrics
from tests.deploy.chart import INSECURE, ROOT, merged, render
from tests.support.exported_metrics import exported, metrics_in

ALERTS = ROOT / "deploy" / "monitoring" / "alerts.yaml"
GROUPS: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"]
RULES: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"]]
# Labels that Prometheus and its operator add, and the label of a histogram's buckets.
_ADDED = {"namespace", "instance", "le"}
_DURATION = re.compile(r"\d+(s|m|h)")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alert_rule_has_all_its_fields(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch("Chatrpc[A-Z][A-Za-z]+", rule["alert"])
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert _DURATION.fullmatch(rule.get("for", "1m"))
    for text in (rule["annotations"]["summary"], rule["annotations"]["description"]):
        assert text.endswith(".")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alert_rule_uses_exported_metrics(rule: dict[str, Any]) -> None:
    expression = rule["expr"]
    asked = metrics_in(expression)
    assert asked
    assert asked <= exported()
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alert_rule_uses_labels_of_its_metrics(rule: dict[str, Any]) -> None:
    own = [*vars(GatewayMetrics()).values(), *vars(ServiceMetrics()).values()]
    metrics: list[Any] = [*own, *ReloadMetrics().collect()]
    labels = {label for metric in metrics for label in getattr(metric, "_labelnames", ())}
    grouped = [group.split(", ") for group in re.findall(r"by \(([^)]*)\)", rule["expr"])]
    used = {label for group in grouped for label in group}
    matched = set(re.findall(r"[{,](\w+)=", rule["expr"]))
    assert used | matched <= labels | _ADDED
    shown = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    assert shown <= (used or _ADDED | labels)


def test_alert_names_are_unique() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))


def test_chart_has_the_rules_of_the_repository() -> None:
    values = {"monitoring": {"prometheusRule": {"enabled": True, "labels": {"release": "p"}}}}
    rule = render(merged(INSECURE, values)).one("PrometheusRule", "demo-chatrpc")
    assert rule["spec"]["groups"] == GROUPS
    assert rule["metadata"]["labels"]["release"] == "p"


def test_prometheus_of_the_compose_file_loads_the_rules() -> None:
    prometheus = yaml.safe_load((ALERTS.parent / "prometheus.yml").read_text())
    assert prometheus["rule_files"] == [ALERTS.name]
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    mounts = compose["services"]["prometheus"]["volumes"]
    assert f"./monitoring/{ALERTS.name}:/etc/prometheus/{ALERTS.name}:ro" in mounts
