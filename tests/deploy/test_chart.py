"""The objects of the Helm chart are valid and consistent with one another."""

import copy
import json
import re
from hashlib import sha256

import helm_python
import kubernetes_validate
import pytest

from gateway_http.config import Settings as GatewaySettings
from service.config import ServiceSettings
from service.rpc.serving.lifecycle import LIVENESS, READINESS, STARTUP
from tests.deploy.chart import (
    CHART,
    CUSTOM,
    INSECURE,
    KUBERNETES,
    NAMESPACE,
    ROOT,
    VALUES,
    Object,
    Release,
    containers,
    deployment_container,
    main_container,
    merged,
    pod_templates,
    render,
    settings_of,
    values_file,
)
from tests.support.exported_metrics import exported
from tests.support.params import slow_but
from tests.support.process_options import argument


def test_chart_passes_helm_lint() -> None:
    for path in VALUES.values():
        report = helm_python.lint(CHART, values_file(path), strict=True)
        assert not report["errors"]
        assert {message["severity"] for message in report["messages"]} <= {1}, report


@pytest.mark.parametrize("version", slow_but(KUBERNETES[-1:], KUBERNETES))
@pytest.mark.parametrize("name", sorted(VALUES))
def test_objects_are_valid_for_kubernetes(
    releases: dict[str, Release], name: str, version: str
) -> None:
    for each in releases[name].objects:
        if each["kind"] not in CUSTOM:
            known = without_new_fields(each, version)
            kubernetes_validate.validate(known, version, strict=True)


def without_new_fields(each: Object, version: str) -> Object:
    """Remove fields that an old version of Kubernetes lacks. Values for it would not set them."""
    if each["kind"] != "Deployment":
        return each
    found: Object = copy.deepcopy(each)
    pod = found["spec"]["template"]["spec"]
    if version < "1.30":
        pod["containers"][0].pop("lifecycle", None)
    if version < "1.31":
        pod["volumes"] = [volume for volume in pod["volumes"] if "image" not in volume]
    return found


def test_object_names_are_unique_in_the_namespace(release: Release) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in release.objects]
    assert len(names) == len(set(names))
    for each in release.objects:
        assert each["metadata"].get("namespace", NAMESPACE) == NAMESPACE
        assert len(each["metadata"]["name"]) <= 63


def test_probes_use_plaintext_ports_of_the_container(release: Release) -> None:
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


def test_probes_use_their_own_endpoints(release: Release) -> None:
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


def test_startup_probe_allows_the_configured_time(releases: dict[str, Release]) -> None:
    spec = releases["gpu"].one("Deployment", "demo-chatrpc-qwen3-8b")["spec"]
    probe = spec["template"]["spec"]["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 1800
    assert spec["progressDeadlineSeconds"] > 1800


def test_grace_period_exceeds_delay_and_drain(release: Release) -> None:
    for each in release.workloads:
        template = pod_templates(each)[0]
        pod = template["spec"]
        container = main_container(template)
        sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        settings = settings_of(container)
        if isinstance(settings, ServiceSettings):
            running = settings.drain_timeout_s
        else:
            assert isinstance(settings, GatewaySettings)
            running = settings.drain_timeout_s + 2  # 2 s to finish after the drain
        delay = float(argument(container["args"], "drain-delay-s"))
        assert pod["terminationGracePeriodSeconds"] >= sleep + delay + running + 5


def test_pre_stop_hook_exists_only_if_configured(releases: dict[str, Release]) -> None:
    full = {each["metadata"]["name"]: each for each in releases["full"].all("Deployment")}
    sleeping = [
        name for name in full if "lifecycle" in deployment_container(releases["full"], name)
    ]
    assert sleeping == ["llm-small"]
    for container in containers(releases["minimal"], "service"):
        assert "lifecycle" not in container


def test_selectors_match_only_their_pods(release: Release) -> None:
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
        components = {label["app.kubernetes.io/component"] for label in found}
        if each["metadata"]["name"].endswith("-services-metrics"):
            assert components == {"service"}
        elif each["kind"] == "PodDisruptionBudget" and "worker" in components:
            assert components == {"service", "worker"}  # of one group
        else:
            assert len(found) == 1, each["metadata"]["name"]


def test_ports_of_services_and_policies_exist(release: Release) -> None:
    names = {
        (pod["metadata"]["labels"]["app.kubernetes.io/component"], port["name"])
        for pod in release.pods()
        for port in main_container(pod).get("ports", [])
    }
    for service in release.all("Service"):
        component = service["spec"]["selector"]["app.kubernetes.io/component"]
        assert all((component, port["targetPort"]) in names for port in service["spec"]["ports"])
    for policy in release.all("NetworkPolicy"):
        component = policy["spec"]["podSelector"]["matchLabels"].get("app.kubernetes.io/component")
        for rule in policy["spec"]["ingress"]:
            assert all((component, port["port"]) in names for port in rule.get("ports", ()))
    for monitor in release.all("ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        (service,) = (
            s for s in release.all("Service") if wanted.items() <= s["metadata"]["labels"].items()
        )
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports
    for monitor in release.all("PodMonitor"):
        component = monitor["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert (component, endpoint["port"]) in names


def test_models_have_headless_http2_services(release: Release) -> None:
    services = [s for s in release.all("Service") if not is_for_metrics(s)]
    (gateway,) = (s for s in services if s["metadata"]["name"].endswith("-gateway"))
    assert gateway["spec"].get("clusterIP") is None
    models = [service for service in services if service is not gateway]
    assert len(models) == len(release.workloads) - 1
    for service in models:
        assert service["spec"]["clusterIP"] == "None"
        (port,) = service["spec"]["ports"]
        assert port["appProtocol"] in {"kubernetes.io/h2c", "https"}


def is_for_metrics(service: Object) -> bool:
    return bool(service["metadata"]["name"].endswith("-metrics"))


def test_api_services_have_no_probe_or_metrics_ports(release: Release) -> None:
    for service in release.all("Service"):
        ports = {port["targetPort"] for port in service["spec"]["ports"]}
        assert bool(ports & {"admin", "metrics"}) is is_for_metrics(service)
        if is_for_metrics(service):
            assert service["spec"]["clusterIP"] == "None"


def test_pods_have_no_unneeded_privileges(release: Release) -> None:
    for pod in release.pods():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        # A Service named chatrpc would set CHATRPC_SERVICE_PORT, which is one of our settings.
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        restrictions = {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert restrictions.items() <= main_container(pod)["securityContext"].items()
    for account in release.all("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_memory_request_equals_the_limit(release: Release) -> None:
    for pod in release.pods():
        resources = main_container(pod)["resources"]
        assert resources["requests"]["memory"] == resources["limits"]["memory"]
        assert "cpu" in resources["requests"]


def test_node_disk_volumes_are_sized_and_requested(
    release: Release,
) -> None:
    for each in release.workloads:
        for pod in pod_templates(each):
            resources = main_container(pod)["resources"]
            asked = resources["requests"]["ephemeral-storage"]
            assert resources["limits"]["ephemeral-storage"] == asked
            sizes = [
                volume["emptyDir"]["sizeLimit"]
                for volume in pod["spec"]["volumes"]
                # Without shared memory, and without a volume of the operator.
                if "emptyDir" in volume and volume["name"] not in {"scratch", "shm"}
            ]
            if each["metadata"]["name"] != "llm-small":  # its values set the request
                assert mebibytes(asked) == sum(map(mebibytes, sizes)) + 512  # for logs


def mebibytes(quantity: str) -> int:
    number, unit = int(quantity[:-2]), quantity[-2:]
    return number * {"Mi": 1, "Gi": 1024}[unit]


def test_gpu_limits_are_set_only_on_gpu_pods(releases: dict[str, Release]) -> None:
    container = deployment_container(releases["gpu"], "demo-chatrpc-qwen3-8b")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"] == "registry.example.com/inference/chatrpc-service-cuda:0.1.0"
    gateway = deployment_container(releases["gpu"], "demo-chatrpc-gateway")
    assert gateway["image"] == "registry.example.com/inference/chatrpc-gateway:0.1.0"
    assert "nvidia.com/gpu" not in gateway["resources"]["limits"]


def test_image_can_be_given_by_digest(releases: dict[str, Release]) -> None:
    image = deployment_container(releases["full"], "llm-small")["image"]
    assert re.fullmatch(r"registry\.example\.com/chatrpc-service@sha256:0{64}", image)


def test_rollout_keeps_old_pods_until_new_ones_are_ready(releases: dict[str, Release]) -> None:
    for each in releases["minimal"].all("Deployment"):
        assert each["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_single_node_volume_is_released_before_it_is_mounted_again(
    releases: dict[str, Release],
) -> None:
    tied = releases["full"].one("Deployment", "llm-qwen3-5-8b-instruct")["spec"]
    assert tied["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    claim = releases["full"].one("PersistentVolumeClaim", "llm-qwen3-5-8b-instruct")["spec"]
    assert claim["accessModes"] == ["ReadWriteOnce"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "resource_name"),
    [
        ("smollm2", "smollm2"),
        ("qwen3.5-8b", "qwen3-5-8b"),
        ("Llama_3.1", "llama-3-1"),
        ("a" * 30, "a" * 30),
        ("b" * 63, "b" * 21 + "-" + sha256(b"b" * 63).hexdigest()[:8]),
        ("7", "7"),
    ],
)
def test_model_name_becomes_a_valid_object_name(name: str, resource_name: str) -> None:
    models: Object = {"models": [{"name": name, "model": "m"}]}
    release = render(merged(INSECURE, models))
    full_name = f"demo-chatrpc-{resource_name}"
    pod = release.one("Deployment", full_name)["spec"]["template"]
    assert pod["metadata"]["labels"]["chatrpc/model"] == name
    assert argument(main_container(pod)["args"], "served-model-name") == name
    assert release.one("Service", full_name)
    for each in release.objects:
        kubernetes_validate.validate(each, KUBERNETES[-1], strict=True)


def test_object_name_of_a_model_can_be_configured() -> None:
    models = [{"name": "a.b", "model": "m"}, {"name": "a-b", "model": "m", "resourceName": "ab"}]
    release = render(merged(INSECURE, {"models": models}))
    assert release.one("Deployment", "demo-chatrpc-a-b")
    assert release.one("Deployment", "demo-chatrpc-ab")


def test_extra_parts_of_values_are_in_the_pods(releases: dict[str, Release]) -> None:
    for name in ("llm-small", "llm-gateway"):
        deployment = releases["full"].one("Deployment", name)["spec"]
        pod = deployment["template"]["spec"]
        ours, theirs = pod["containers"]
        assert deployment["minReadySeconds"] > 0
        assert deployment["progressDeadlineSeconds"] > deployment["minReadySeconds"]
        assert [each["name"] for each in pod["initContainers"]] == ["wait"]
        assert theirs["name"] == "mesh"
        assert ours["envFrom"]
        assert {"name": "scratch", "mountPath": "/scratch"} in ours["volumeMounts"]
        assert {"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}} in pod["volumes"]
        assert ours["securityContext"]["runAsUser"] == 1000
    small = releases["full"].one("Deployment", "llm-small")["spec"]["template"]["spec"]
    assert small["securityContext"]["fsGroup"] == 1000
    probe = main_container({"spec": small})["readinessProbe"]
    assert (probe["failureThreshold"], probe["periodSeconds"]) == (4, 2)  # 4 is configured


def test_ingress_has_the_configured_paths(releases: dict[str, Release]) -> None:
    (rule,) = releases["full"].one("Ingress", "llm-gateway")["spec"]["rules"]
    paths = [(path["path"], path["pathType"]) for path in rule["http"]["paths"]]
    assert paths == [("/v1", "Prefix"), ("/healthz", "Exact")]


def test_model_volumes_are_mounted(releases: dict[str, Release]) -> None:
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
    # A converted model is stored beside the model, or is in the image.
    caches = {
        name: [
            a
            for a in deployment_container(releases["full"], name)["args"]
            if a.startswith("--cache-dir")
        ]
        for name in ("llm-small", "llm-files", "llm-shared", "llm-fetched")
    }
    assert caches == {
        "llm-small": [],
        "llm-files": [],
        "llm-shared": ["--cache-dir=/weights/cache"],
        "llm-fetched": ["--cache-dir=/var/lib/chatrpc/cache"],
    }
    # A GGUF file is converted, and the directory of the image is read-only.
    for kind, path in (("none", "/models/phi.gguf"), ("image", "/var/lib/chatrpc/phi.gguf")):
        reference = "registry.example.com/models/phi:1" if kind == "image" else ""
        storage = {"kind": kind, "reference": reference}
        model: Object = {"name": "phi", "model": path, "storage": storage}
        container = deployment_container(
            render(merged(INSECURE, {"models": [model]})), "demo-chatrpc-phi"
        )
        assert argument(container["args"], "cache-dir") == "/tmp/cache"  # noqa: S108  # of a pod
        assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]  # noqa: S108
    (claim,) = releases["gpu"].all("PersistentVolumeClaim")
    assert claim["metadata"]["name"] == "demo-chatrpc-qwen3-8b"
    assert claim["spec"]["storageClassName"] == "shared"


def test_autoscaler_uses_waiting_and_running_sequences(releases: dict[str, Release]) -> None:
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


def test_autoscaler_uses_exported_metrics() -> None:
    assert {"chatrpc_sequences_waiting", "chatrpc_sequences_running"} <= exported()


def test_configured_metrics_replace_the_default_ones(
    releases: dict[str, Release],
) -> None:
    name = "llm-qwen3-5-8b-instruct"
    (metric,) = releases["full"].one("HorizontalPodAutoscaler", name)["spec"]["metrics"]
    assert metric["type"] == "External"


def test_dashboards_are_those_of_the_repository() -> None:
    values = merged(INSECURE, {"monitoring": {"dashboard": {"enabled": True}}})
    files = {path.name: path.read_text() for path in (ROOT / "deploy" / "grafana").glob("*.json")}
    assert files
    dashboards = render(values).one("ConfigMap", "demo-chatrpc-dashboards")
    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert {name: json.loads(text) for name, text in dashboards["data"].items()} == {
        name: json.loads(text) for name, text in files.items()
    }


def test_network_policy_admits_only_the_gateway_to_a_service(releases: dict[str, Release]) -> None:
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


def test_prefix_cache_has_a_volume_that_is_larger_than_it(releases: dict[str, Release]) -> None:
    def prefixes(name: str) -> tuple[Object, ServiceSettings]:
        spec = releases["full"].one("Deployment", name)["spec"]["template"]["spec"]
        (volume,) = (each for each in spec["volumes"] if each["name"] == "prefixes")
        container = deployment_container(releases["full"], name)
        (mount,) = (each for each in container["volumeMounts"] if each["name"] == "prefixes")
        settings = settings_of(container)
        assert isinstance(settings, ServiceSettings)
        assert str(settings.prefix_cache_dir) == mount["mountPath"]
        return volume, settings

    volume, settings = prefixes("llm-fetched")
    assert volume == {"name": "prefixes", "emptyDir": {"sizeLimit": "2Gi"}}
    assert settings.prefix_cache_disk_bytes == int(0.9 * 2 * 2**30)
    volume, settings = prefixes("llm-shared")
    assert volume == {"name": "prefixes", "persistentVolumeClaim": {"claimName": "prefixes"}}
    assert settings.prefix_cache_disk_bytes == int(0.9 * 50 * 2**30)
