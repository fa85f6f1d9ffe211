"""The Helm chart: what it makes is valid, and fits together."""

import copy
import json
import re

import helm_python
import kubernetes_validate
import pytest

from gateway_http.config import Settings as GatewaySettings
from service.config import ServiceSettings
from service.rpc.lifecycle import LIVENESS, READINESS, STARTUP
from tests.deploy.chart import (
    CHART,
    INSECURE,
    NAMESPACE,
    ROOT,
    VALUES,
    Object,
    Release,
    containers,
    deployment_container,
    merged,
    render,
    settings_of,
    values_file,
)
from tests.deploy.settings import argument

# The first with native gRPC probes; the first with a sleep of its own in preStop; the newest.
KUBERNETES = ("1.27", "1.30", "1.34", "1.37")
CUSTOM = {"ScaledObject", "PodMonitor", "HTTPRoute", "GRPCRoute"}


def test_it_lints() -> None:
    for path in VALUES.values():
        report = helm_python.lint(CHART, values_file(path), strict=True)
        assert not report["errors"]
        assert {message["severity"] for message in report["messages"]} <= {1}, report


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", sorted(VALUES))
def test_kubernetes_takes_it(releases: dict[str, Release], name: str, version: str) -> None:
    for each in releases[name].objects:
        if each["kind"] not in CUSTOM:
            known = without_what_is_new(each, version)
            kubernetes_validate.validate(known, version, strict=True)


def without_what_is_new(each: Object, version: str) -> Object:
    """A release for an old cluster would not have these: its values would not ask for them."""
    if each["kind"] != "Deployment":
        return each
    found: Object = copy.deepcopy(each)
    pod = found["spec"]["template"]["spec"]
    if version < "1.30":
        pod["containers"][0].pop("lifecycle", None)
    if version < "1.31":
        pod["volumes"] = [volume for volume in pod["volumes"] if "image" not in volume]
    return found


def test_names_are_unique_and_in_the_namespace(release: Release) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in release.objects]
    assert len(names) == len(set(names))
    for each in release.objects:
        assert each["metadata"].get("namespace", NAMESPACE) == NAMESPACE
        assert len(each["metadata"]["name"]) <= 63


def test_probes_ask_ports_of_the_container_in_the_clear(release: Release) -> None:
    for name, port in (("service", 50052), ("gateway", 8001)):
        for container in containers(release, name):
            ports = {each["name"]: each["containerPort"] for each in container["ports"]}
            assert ports["admin"] == port
            assert f"--admin-port={port}" in container["args"]
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                (asked,) = (container[probe].get(kind) for kind in ("grpc", "httpGet")
                            if kind in container[probe])  # fmt: skip
                assert asked["port"] == port
                assert container[probe]["timeoutSeconds"] >= 2


def test_probes_ask_for_what_they_are_about(release: Release) -> None:
    for container in containers(release, "service"):
        names = {
            probe: container[probe]["grpc"]["service"]
            for probe in ("startupProbe", "readinessProbe", "livenessProbe")
        }
        assert names == {
            "startupProbe": STARTUP,
            "readinessProbe": READINESS,
            "livenessProbe": LIVENESS,
        }
    for container in containers(release, "gateway"):
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_a_start_may_take_as_long_as_the_values_say(releases: dict[str, Release]) -> None:
    spec = releases["gpu"].one("Deployment", "demo-chatrpc-qwen3-8b")["spec"]
    probe = spec["template"]["spec"]["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 1800
    assert spec["progressDeadlineSeconds"] > 1800


def test_the_grace_outlasts_delay_and_drain(release: Release) -> None:
    for each in release.all("Deployment"):
        pod = each["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        settings = settings_of(container)
        if isinstance(settings, ServiceSettings):
            running = settings.drain_timeout_s
        else:
            assert isinstance(settings, GatewaySettings)
            running = settings.shutdown_grace_s + 2  # its last words
        delay = float(argument(container["args"], "drain-delay-s"))
        assert pod["terminationGracePeriodSeconds"] >= sleep + delay + running + 5


def test_pre_stop_is_only_there_when_asked_for(releases: dict[str, Release]) -> None:
    full = {each["metadata"]["name"]: each for each in releases["full"].all("Deployment")}
    sleeping = [
        name for name in full if "lifecycle" in deployment_container(releases["full"], name)
    ]
    assert sleeping == ["llm-small"]
    for container in containers(releases["minimal"], "service"):
        assert "lifecycle" not in container


def test_selectors_find_their_pods_and_no_others(release: Release) -> None:
    labels = [pod["metadata"]["labels"] for pod in release.pods()]
    for each in release.objects:
        spec = each.get("spec", {})
        if each["kind"] == "Service":
            selector = spec["selector"]
        elif each["kind"] in {"Deployment", "PodDisruptionBudget"}:
            selector = spec["selector"]["matchLabels"]
        else:
            continue
        found = [label for label in labels if selector.items() <= label.items()]
        assert len(found) == 1, each["metadata"]["name"]


def test_ports_of_services_and_policies_exist(release: Release) -> None:
    names = {
        (pod["metadata"]["labels"]["app.kubernetes.io/component"], port["name"])
        for pod in release.pods()
        for port in pod["spec"]["containers"][0].get("ports", [])
    }
    for service in release.all("Service"):
        component = service["spec"]["selector"]["app.kubernetes.io/component"]
        assert all((component, port["targetPort"]) in names for port in service["spec"]["ports"])
    for policy in release.all("NetworkPolicy"):
        component = policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for rule in policy["spec"]["ingress"]:
            assert all((component, port["port"]) in names for port in rule["ports"])
    for monitor in release.all("PodMonitor"):
        component = monitor["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert (component, endpoint["port"]) in names


def test_models_have_headless_services_of_http_2(release: Release) -> None:
    (gateway,) = (s for s in release.all("Service") if s["metadata"]["name"].endswith("-gateway"))
    assert gateway["spec"].get("clusterIP") is None
    models = [service for service in release.all("Service") if service is not gateway]
    assert len(models) == len(release.all("Deployment")) - 1
    for service in models:
        assert service["spec"]["clusterIP"] == "None"
        (port,) = service["spec"]["ports"]
        assert port["appProtocol"] in {"kubernetes.io/h2c", "https"}


def test_pods_may_do_nothing_that_they_need_not(release: Release) -> None:
    for pod in release.pods():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        # A Service called chatrpc would set CHATRPC_SERVICE_PORT, which is a setting of ours.
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    for account in release.all("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_memory_that_is_asked_for_is_the_limit(release: Release) -> None:
    for pod in release.pods():
        resources = pod["spec"]["containers"][0]["resources"]
        assert resources["requests"]["memory"] == resources["limits"]["memory"]
        assert "cpu" in resources["requests"]


def test_gpus_are_limits_of_their_pods_alone(releases: dict[str, Release]) -> None:
    container = deployment_container(releases["gpu"], "demo-chatrpc-qwen3-8b")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"] == "registry.example.com/inference/chatrpc-service-cuda:0.1.0"
    gateway = deployment_container(releases["gpu"], "demo-chatrpc-gateway")
    assert gateway["image"] == "registry.example.com/inference/chatrpc-gateway:0.1.0"
    assert "nvidia.com/gpu" not in gateway["resources"]["limits"]


def test_an_image_may_be_named_by_its_digest(releases: dict[str, Release]) -> None:
    image = deployment_container(releases["full"], "llm-small")["image"]
    assert re.fullmatch(r"registry\.example\.com/chatrpc-service@sha256:0{64}", image)


def test_a_roll_out_takes_nobody_away_first(releases: dict[str, Release]) -> None:
    for each in releases["minimal"].all("Deployment"):
        assert each["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_volumes_of_models(releases: dict[str, Release]) -> None:
    def model_volume(name: str) -> Object | None:
        spec = releases["full"].one("Deployment", name)["spec"]["template"]["spec"]
        return next((volume for volume in spec["volumes"] if volume["name"] == "model"), None)

    assert model_volume("llm-small") is None
    assert model_volume("llm-files") == {
        "name": "model",
        "image": {"reference": "registry.example.com/models/llama:1", "pullPolicy": "IfNotPresent"},
    }
    assert model_volume("llm-shared") == {
        "name": "model",
        "persistentVolumeClaim": {"claimName": "weights", "readOnly": True},
    }
    assert model_volume("llm-fetched") == {"name": "model", "emptyDir": {"sizeLimit": "4Gi"}}
    # What is made of a model is kept beside it, or was made in the image.
    caches = {
        name: [a for a in deployment_container(releases["full"], name)["args"] if "cache-dir" in a]
        for name in ("llm-small", "llm-files", "llm-shared", "llm-fetched")
    }
    assert caches == {
        "llm-small": [],
        "llm-files": [],
        "llm-shared": ["--cache-dir=/weights/cache"],
        "llm-fetched": ["--cache-dir=/var/lib/chatrpc/cache"],
    }
    # Of a GGUF file a checkpoint is made, and the image's own directory is read-only.
    for kind, path in (("none", "/models/phi.gguf"), ("image", "/var/lib/chatrpc/phi.gguf")):
        storage = {"kind": kind, "reference": "registry.example.com/models/phi:1"}
        model: Object = {"name": "phi", "model": path, "storage": storage}
        container = deployment_container(
            render(merged(INSECURE, {"models": [model]})), "demo-chatrpc-phi"
        )
        assert argument(container["args"], "cache-dir") == "/tmp/cache"  # noqa: S108  # of a pod
        assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]  # noqa: S108
    (claim,) = releases["gpu"].all("PersistentVolumeClaim")
    assert claim["metadata"]["name"] == "demo-chatrpc-qwen3-8b"
    assert claim["spec"]["storageClassName"] == "shared"


def test_scaling_goes_by_who_waits_and_who_runs(releases: dict[str, Release]) -> None:
    (hpa,) = (
        each
        for each in releases["full"].all("HorizontalPodAutoscaler")
        if each["metadata"]["name"] == "llm-small"
    )
    metrics = {m["pods"]["metric"]["name"]: m["pods"]["target"] for m in hpa["spec"]["metrics"]}
    assert metrics == {
        "chatrpc_sequences_running": {"type": "AverageValue", "averageValue": "24"},
        "chatrpc_sequences_waiting": {"type": "AverageValue", "averageValue": "4"},
    }
    (scaled,) = releases["gpu"].all("ScaledObject")
    queries = {
        t["metadata"]["query"]: t["metadata"]["threshold"] for t in scaled["spec"]["triggers"]
    }
    assert queries == {
        f'sum(chatrpc_sequences_{state}{{namespace="prod",'
        f'pod=~"demo-chatrpc-qwen3-8b-[a-z0-9]+-[a-z0-9]+"}})': threshold
        for state, threshold in (("waiting", "8"), ("running", "96"))
    }
    for name in ("full", "gpu"):
        for each in releases[name].all("Deployment"):
            scaled_names = {
                scaler["spec"]["scaleTargetRef"]["name"]
                for kind in ("HorizontalPodAutoscaler", "ScaledObject")
                for scaler in releases[name].all(kind)
            }
            assert ("replicas" in each["spec"]) != (each["metadata"]["name"] in scaled_names)


def test_metrics_that_scaling_asks_for_exist() -> None:
    source = (ROOT / "service" / "metrics.py").read_text()
    assert '"sequences_waiting"' in source
    assert '"sequences_running"' in source


def test_dashboards_are_those_of_the_repository() -> None:
    values = merged(INSECURE, {"monitoring": {"dashboard": {"enabled": True}}})
    files = {path.name: path.read_text() for path in (ROOT / "deploy" / "grafana").glob("*.json")}
    assert files
    dashboards = render(values).one("ConfigMap", "demo-chatrpc-dashboards")
    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert {name: json.loads(text) for name, text in dashboards["data"].items()} == {
        name: json.loads(text) for name, text in files.items()
    }


def test_only_the_gateway_reaches_a_service(releases: dict[str, Release]) -> None:
    policy = releases["minimal"].one("NetworkPolicy", "demo-chatrpc-services")["spec"]
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"port": "grpc", "protocol": "TCP"}]
    (peer,) = rule["from"]
    gateway = releases["minimal"].one("Deployment", "demo-chatrpc-gateway")
    labels = gateway["spec"]["template"]["metadata"]["labels"]
    assert peer["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["policyTypes"] == ["Ingress"]
    full = releases["full"].one("NetworkPolicy", "llm-services")["spec"]
    assert full["policyTypes"] == ["Ingress", "Egress"]
