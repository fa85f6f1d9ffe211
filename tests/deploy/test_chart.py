"""The Helm chart: what it makes is valid, fits together, and is understood by our processes."""

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import trustme

from chatrpc_process.settings import ProcessSettings
from gateway_http.config import Settings as GatewaySettings
from gateway_http.registry import load_registry
from service.config import ServiceSettings
from service.rpc.lifecycle import LIVENESS, READINESS, STARTUP
from tests.deploy.chart import CHART, NAMESPACE, ROOT, Object, Release, merged, render, values_file
from tests.deploy.settings import PENDING, argument, options, parsed

VALUES = {path.name.removesuffix("-values.yaml"): path for path in (CHART / "ci").iterdir()}
# The first with native gRPC probes; the first with a sleep of its own in preStop; the newest.
KUBERNETES = ("1.27", "1.30", "1.34", "1.37")
CUSTOM = {"ScaledObject", "PodMonitor", "HTTPRoute", "GRPCRoute"}
INSECURE: Object = {"access": {"insecure": True}}


@pytest.fixture(scope="module")
def releases() -> dict[str, Release]:
    return {name: render(values_file(path)) for name, path in VALUES.items()}


@pytest.fixture(params=sorted(VALUES))
def release(request: pytest.FixtureRequest, releases: dict[str, Release]) -> Release:
    return releases[request.param]


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


# Settings ---------------------------------------------------------------------------------------


def settings_of(container: Object) -> ProcessSettings:
    kind = ServiceSettings if container["name"] == "service" else GatewaySettings
    return parsed(kind, container["args"])


def containers(release: Release, name: str) -> list[Object]:
    found = [container for pod in release.pods() for container in pod["spec"]["containers"]]
    return [container for container in found if container["name"] == name]


def test_processes_take_their_arguments(release: Release) -> None:
    for container in (*containers(release, "service"), *containers(release, "gateway")):
        assert settings_of(container).model_dump()["host"] == "0.0.0.0"  # noqa: S104  # of a pod


def test_options_reach_the_settings(releases: dict[str, Release]) -> None:
    release = releases["full"]
    small = settings_of(deployment_container(release, "llm-small"))
    assert isinstance(small, ServiceSettings)
    assert small.served_model_name == "small"
    assert small.model_aliases == ["gpt-4o-mini", "gpt-3.5-turbo"]
    assert (small.max_num_seqs, small.max_model_len, small.prefix_caching) == (64, 4096, False)
    assert small.kv_cache_memory_bytes == 2 << 30
    assert small.max_request_s == 300.5
    assert small.num_threads == 2  # of 1500m
    assert (small.drain_delay_s, small.drain_timeout_s) == (0, 300)
    (gateway,) = (settings_of(container) for container in containers(release, "gateway"))
    assert isinstance(gateway, GatewaySettings)
    assert gateway.max_body_bytes == 16 << 20
    assert gateway.cors_allow_origins == ["https://chat.example.com", "https://docs.example.com"]
    gpu = settings_of(deployment_container(releases["gpu"], "demo-chatrpc-qwen3-8b"))
    assert isinstance(gpu, ServiceSettings)
    assert (gpu.device, gpu.num_threads) == ("cuda", None)
    assert gpu.served_model_name == "Qwen/Qwen3-8B"


def deployment_container(release: Release, name: str) -> Object:
    (container,) = release.one("Deployment", name)["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def test_every_option_of_the_documents_can_be_given() -> None:
    """The schema refuses the chart's own options, and only names that exist are its own."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    model = schema["definitions"]["model"]["properties"]["options"]
    gateway = schema["properties"]["gateway"]["properties"]["options"]
    for part, kind in ((model, ServiceSettings), (gateway, GatewaySettings)):
        names = options(kind)
        owned = set(part["propertyNames"]["not"]["enum"])
        assert owned <= names | PENDING[kind]
        assert all(re.match(part["propertyNames"]["pattern"], name) for name in names)


def test_no_secret_is_in_an_argument_or_the_environment(release: Release) -> None:
    for pod in release.pods():
        for container in pod["spec"]["containers"]:
            for variable in container.get("env", []):
                assert not re.search("KEY|TOKEN$|SECRET|PASSWORD", variable["name"])
            for word in container.get("args", []):
                assert not re.search("sk-|BEGIN|sha256=", word)
    assert not release.all("Secret")


def test_files_that_arguments_name_are_mounted(release: Release) -> None:
    for pod in release.pods():
        (container,) = pod["spec"]["containers"]
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        assert set(mounted.values()) == set(volumes)
        environment = [str(variable.get("value")) for variable in container.get("env", [])]
        words = [*container.get("args", []), *container.get("command", []), *environment]
        for word in words:
            for path in re.findall(r"/etc/chatrpc/\S+", word):
                directory, _, file = path.rpartition("/")
                volume = volumes[mounted[directory]]
                if "secret" in volume:
                    assert file in [item["path"] for item in volume["secret"]["items"]]


# The registry -----------------------------------------------------------------------------------


def registry_file(release: Release) -> str:
    (found,) = (m for m in release.all("ConfigMap") if m["metadata"]["name"].endswith("-registry"))
    text = found["data"]["registry.toml"]
    assert isinstance(text, str)
    return text


def registry(release: Release) -> list[dict[str, Any]]:
    models = tomllib.loads(registry_file(release))["model"]
    assert isinstance(models, list)
    return models


def test_the_gateway_reads_the_registry(release: Release, tmp_path: Path) -> None:
    authority = trustme.CA()
    client = authority.issue_cert("gateway")
    files = {
        "upstream-tls/ca.crt": authority.cert_pem.bytes(),
        "upstream-client-tls/tls.crt": client.cert_chain_pems[0].bytes(),
        "upstream-client-tls/tls.key": client.private_key_pem.bytes(),
        "upstream-key/api-key": b"sk-chatrpc-test\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "registry.toml"
    path.write_text(registry_file(release).replace("/etc/chatrpc", str(tmp_path)))
    names = [entry.name for entry in load_registry(path).entries]
    assert names == [model["name"] for model in registry(release)]


def test_the_registry_has_every_model_at_its_headless_service(release: Release) -> None:
    targets = {model["target"]: model for model in registry(release)}
    for service in release.all("Service"):
        if service["spec"].get("clusterIP") == "None":
            name = service["metadata"]["name"]
            model = targets.pop(f"dns:///{name}.{NAMESPACE}.svc:50051")
            settings = settings_of(deployment_container(release, name))
            assert isinstance(settings, ServiceSettings)
            assert settings.served_model_name == model["name"]
            assert settings.model_aliases == model["aliases"]
    assert set(targets) <= {"dns:///elsewhere.example.com:50051"}


def test_the_registry_names_the_files_of_tls_and_the_key(releases: dict[str, Release]) -> None:
    release = releases["keys-and-tls"]
    (model,) = registry(release)
    pod = release.one("Deployment", "demo-chatrpc-gateway")["spec"]["template"]["spec"]
    mounts = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    for field in ("ca", "certificate", "key", "api_key_file"):
        assert model[field].rpartition("/")[0] in mounts
    (trusted,) = (volume for volume in pod["volumes"] if volume["name"] == "upstream-tls")
    assert trusted["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]  # not its key


# Kubernetes -------------------------------------------------------------------------------------


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
    # What is made of a model goes where it may be written, and stays in the image where it is made.
    caches = {
        name: [a for a in deployment_container(releases["full"], name)["args"] if "cache-dir" in a]
        for name in ("llm-small", "llm-files", "llm-shared", "llm-fetched")
    }
    assert caches == {
        "llm-small": [],
        "llm-files": [],
        "llm-shared": [],
        "llm-fetched": ["--cache-dir=/var/lib/chatrpc/cache"],
    }
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
    if not files:
        assert "without its dashboards" in refusal(values)
        return
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


# What is refused --------------------------------------------------------------------------------


def refusal(values: Object) -> str:
    with pytest.raises(helm_python.HelmError) as caught:
        render(values)
    return str(caught.value)


def test_nothing_is_open_by_accident() -> None:
    assert "access.gatewayKeys.secret" in refusal({})
    keys: Object = {"access": {"gatewayKeys": {"secret": "keys"}}}
    behind = render(keys)
    (gateway,) = containers(behind, "gateway")
    assert "--insecure" not in gateway["args"]
    (service,) = containers(behind, "service")  # behind a network policy
    assert "--insecure" in service["args"]
    open_inside = merged(keys, {"networkPolicy": {"enabled": False}})
    assert "networkPolicy.enabled" in refusal(open_inside)
    guarded = render(merged(open_inside, {"access": {"serviceKeys": {"secret": "keys"}}}))
    (service,) = containers(guarded, "service")
    assert "--insecure" not in service["args"]
    certificates: Object = {"tls": {"gateway": {"secret": "tls", "clientCertificates": True}}}
    (gateway,) = containers(render(certificates), "gateway")
    assert "--insecure" not in gateway["args"]
    assert "access" in refusal({"tls": {"gateway": {"secret": "tls"}}})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"modles": []}, "modles"),
        ({"models": [{"model": "m"}]}, "name"),
        ({"models": [{"name": "Not_A_Label", "model": "m"}]}, "name"),
        ({"models": [{"name": "gateway", "model": "m"}]}, "name"),
        ({"models": [{"name": "m"}]}, "model is missing"),
        ({"models": [{"name": "m", "model": "m", "replica": 2}]}, "replica"),
        ({"models": [{"name": "m", "model": "m", "options": {"port": 1}}]}, "port"),
        ({"models": [{"name": "m", "model": "m", "options": {"max_num_seqs": 1}}]}, "max_num_seqs"),
        ({"models": [{"name": "m", "model": "m", "resources": {"memory": "lots"}}]}, "memory"),
        ({"models": [{"name": "m", "model": "m", "aliases": ["a,b"]}]}, "aliases"),
        ({"models": [{"name": "m", "model": "m", "storage": {"kind": "nfs"}}]}, "kind"),
        ({"models": [{"name": "m", "model": "m", "storage": {"kind": "image"}}]}, "reference"),
        ({"models": [{"name": "m", "model": "m", "autoscaling": {"kind": "both"}}]}, "kind"),
        ({"models": [{"name": "m", "model": "m", "autoscaling": {"kind": "keda"}}]}, "prometheus"),
        (
            {"models": [{"name": "m", "model": "m", "env": [{"name": "CHATRPC_SERVICE_PORT"}]}]},
            "env",
        ),
        (
            {
                "models": [
                    {"name": "m", "model": "m", "strategy": {"maxSurge": 0, "maxUnavailable": 0}}
                ]
            },
            "strategy",
        ),
        (
            {"models": [{"name": "m", "model": "a"}, {"name": "m", "model": "b"}]},
            "two models are called m",
        ),
        (
            {
                "models": [
                    {"name": "m", "model": "a", "aliases": ["n"]},
                    {"name": "n", "model": "b"},
                ]
            },
            "two models are called n",
        ),
        (
            {"models": [{"name": "m", "model": "m", "routing": {"balance": "ring_hash"}}]},
            "affinity",
        ),
        ({"modelDefaults": {"name": "m"}}, "modelDefaults"),
        ({"gateway": {"options": {"registry": "x"}}}, "registry"),
        ({"gateway": {"service": {"port": 0}}}, "port"),
        ({"gateway": {"replicas": "two"}}, "replicas"),
        ({"access": {"gatewayKeys": {"secret": 1}}}, "secret"),
        ({"tls": {"grpc": {"clientSecret": "client"}}}, "secret"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"listen": "10.0.0.1"}, "listen"),
        ({"monitoring": {"otlpEndpoint": "collector:4318"}}, "otlpEndpoint"),
    ],
)
def test_nonsense_is_refused_by_name(values: Object, expected: str) -> None:
    assert expected in refusal(merged(INSECURE, values))


def test_every_value_has_its_place_in_the_schema() -> None:
    """And none is allowed that the chart does not have."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    definitions = schema["definitions"]

    def properties(part: Object) -> Object | None:
        if "$ref" in part:
            return properties(definitions[part["$ref"].rpartition("/")[2]])
        for each in (part, *part.get("allOf", [])):
            if "properties" in each:
                return dict(each["properties"])
            if "$ref" in each and each is not part:
                return properties(each)
        return None

    def compare(values: Object, part: Object, path: str) -> None:
        known = properties(part)
        if known is None:  # a map of the operator's own
            return
        own = {"name", "global"} if path in {".modelDefaults", ""} else set()
        assert values.keys() == known.keys() - (own - values.keys()), path
        for key, value in values.items():
            if isinstance(value, dict):
                compare(value, known[key], f"{path}.{key}")

    compare(values_file(CHART / "values.yaml"), schema, "")


def test_the_chart_is_of_the_projects_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    metadata = values_file(CHART / "Chart.yaml")
    assert metadata["appVersion"] == metadata["version"] == project["version"]


def test_the_notes_say_how_to_reach_it(releases: dict[str, Release]) -> None:
    assert "dns:///demo-chatrpc-smollm2.prod.svc:50051" in releases["minimal"].notes
    assert "access.insecure is on" in releases["minimal"].notes
    assert "access.insecure" not in releases["keys-and-tls"].notes
    assert "https://demo-chatrpc-gateway.prod.svc" in releases["keys-and-tls"].notes
