"""The Helm chart, rendered as Helm renders it, without a cluster."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from chatrpc_process.settings.process import ProcessSettings
from gateway_http.config import Settings as GatewaySettings
from service.config import ServiceSettings
from tests.support.process_options import parsed

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "deploy" / "helm" / "chatrpc"
VALUES = {path.name.removesuffix("-values.yaml"): path for path in (CHART / "ci").iterdir()}
NAMESPACE = "prod"

# Versions of Kubernetes: the first with native gRPC probes, the first with a sleep action in
# preStop, and newer ones.
KUBERNETES = ("1.27", "1.30", "1.34", "1.37")

# Kinds of operators and of the Gateway API. We have no schemas of these.
CUSTOM = {
    *("ScaledObject", "PodMonitor", "ServiceMonitor", "PrometheusRule", "HTTPRoute", "GRPCRoute"),
    "LeaderWorkerSet",
}

Object = dict[str, Any]

INSECURE: Object = {"access": {"insecure": True}}


@dataclass(frozen=True)
class Release:
    """The rendered chart of an installation with the name `demo`."""

    texts: dict[str, str]

    @cached_property
    def objects(self) -> list[Object]:
        found = []
        for name, text in self.texts.items():
            if not name.endswith("NOTES.txt"):
                found += [each for each in yaml.safe_load_all(text) if each]
        return found

    @property
    def notes(self) -> str:
        return next(text for name, text in self.texts.items() if name.endswith("NOTES.txt"))

    def all(self, kind: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] == kind]

    def one(self, kind: str, name: str) -> Object:
        (found,) = (each for each in self.all(kind) if each["metadata"]["name"] == name)
        return found

    @property
    def workloads(self) -> list[Object]:
        """The objects that have replicas."""
        return [*self.all("Deployment"), *self.all("LeaderWorkerSet")]

    def pods(self) -> Iterator[Object]:
        """Yield the pods, and the pod templates of workloads."""
        yield from self.all("Pod")
        for each in self.workloads:
            yield from pod_templates(each)


def pod_templates(workload: Object) -> list[Object]:
    """Return the templates of a workload's pods. The pods of the first one have the service."""
    if workload["kind"] == "Deployment":
        return [workload["spec"]["template"]]
    group = workload["spec"]["leaderWorkerTemplate"]
    return [group["leaderTemplate"], group["workerTemplate"]]


def render(values: Object) -> Release:
    """Render the chart. Raise helm_python.HelmError if the values are rejected."""
    with helm_python.Chart.load(CHART) as chart:
        return Release(chart.render(values, name="demo", namespace=NAMESPACE))


def merged(*several: Object) -> Object:
    """Merge values as Helm merges several `--values`: maps by key, later values win."""
    result: Object = {}
    for values in several:
        for key, value in values.items():
            old = result.get(key)
            both = isinstance(old, dict) and isinstance(value, dict)
            result[key] = merged(old, value) if both and old is not None else value
    return result


def values_file(path: Path) -> Object:
    values = yaml.safe_load(path.read_text())
    assert isinstance(values, dict)
    return values


def containers(release: Release, name: str) -> list[Object]:
    found = [container for pod in release.pods() for container in pod["spec"]["containers"]]
    return [container for container in found if container["name"] == name]


def deployment_container(release: Release, name: str) -> Object:
    """Return the container with the service, or the gateway, of a Deployment or of its like."""
    (found,) = (
        each
        for each in release.workloads
        if each["metadata"]["name"].removesuffix("-group") == name
    )
    return main_container(pod_templates(found)[0])


def main_container(pod: Object) -> Object:
    """Return our container of a pod. Containers of the operator come after it."""
    container = pod["spec"]["containers"][0]
    assert isinstance(container, dict)
    return container


def settings_of(container: Object) -> ProcessSettings:
    kind = ServiceSettings if container["name"] == "service" else GatewaySettings
    return parsed(kind, container["args"])


def rejection(values: Object) -> str:
    with pytest.raises(helm_python.HelmError) as caught:
        render(values)
    return str(caught.value)
