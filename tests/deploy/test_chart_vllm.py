"""The chart's models with vLLM: on one node, on several nodes, and in replicas."""

import json
import tomllib

import jsonschema
import kubernetes_validate
import pytest

from tests.deploy.chart import (
    KUBERNETES,
    Object,
    Release,
    deployment_container,
    main_container,
    pod_templates,
)
from tests.support.process_options import argument

_COUNT = {"type": ["integer", "string"]}
# The fields of leaderworkerset.x-k8s.io/v1 that the chart uses, with the types and the values of
# its API. The schemas of Kubernetes do not have it.
_SPEC = {
    "type": "object",
    "additionalProperties": False,
    "required": ["leaderWorkerTemplate"],
    "properties": {
        "replicas": {"type": "integer", "minimum": 0},
        "rolloutStrategy": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "type": {"const": "RollingUpdate"},
                "rollingUpdateConfiguration": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"maxSurge": _COUNT, "maxUnavailable": _COUNT},
                },
            },
        },
        "leaderWorkerTemplate": {
            "type": "object",
            "additionalProperties": False,
            "required": ["workerTemplate"],
            "properties": {
                "size": {"type": "integer", "minimum": 1},
                "restartPolicy": {"enum": ["RecreateGroupOnPodRestart", "None"]},
                "leaderTemplate": {"type": "object"},
                "workerTemplate": {"type": "object"},
            },
        },
    },
}
GROUP = "demo-chatrpc-deepseek-v3-group"


@pytest.fixture(scope="session")
def nodes(releases: dict[str, Release]) -> Release:
    return releases["vllm-nodes"]


@pytest.fixture(scope="session")
def leader(nodes: Release) -> Object:
    return pod_templates(nodes.one("LeaderWorkerSet", GROUP))[0]


@pytest.fixture(scope="session")
def worker(nodes: Release) -> Object:
    return pod_templates(nodes.one("LeaderWorkerSet", GROUP))[1]


def vllm_args(container: Object) -> Object:
    found = json.loads(argument(container["args"], "vllm-args"))
    assert isinstance(found, dict)
    return found


def mounts(pod: Object) -> dict[str, str]:
    return {each["name"]: each["mountPath"] for each in main_container(pod)["volumeMounts"]}


def test_one_node_has_the_gpus_the_arguments_and_shared_memory(
    releases: dict[str, Release],
) -> None:
    release = releases["vllm"]
    container = deployment_container(release, "demo-chatrpc-llama-3-3-70b")
    assert container["image"] == "registry.example.com/chatrpc-service-vllm:0.1.0"
    assert argument(container["args"], "engine") == "vllm"
    assert not [word for word in container["args"] if word.startswith(("--device", "--num-thr"))]
    assert vllm_args(container) == {
        "tensor_parallel_size": 4,
        "gpu_memory_utilization": 0.92,
        "max_model_len": 32768,
    }
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    (deployment,) = (d for d in release.all("Deployment") if "llama" in d["metadata"]["name"])
    pod = deployment["spec"]["template"]
    assert mounts(pod)["shm"] == "/dev/shm"  # noqa: S108  # of a pod
    (volume,) = (each for each in pod["spec"]["volumes"] if each["name"] == "shm")
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert environment["VLLM_CACHE_ROOT"] == "/var/lib/chatrpc/vllm"
    assert "VLLM_HOST_IP" not in environment


def test_group_is_valid(nodes: Release) -> None:
    group = nodes.one("LeaderWorkerSet", GROUP)
    assert group["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
    jsonschema.validate(group["spec"], _SPEC)
    template = group["spec"]["leaderWorkerTemplate"]
    assert template["size"] == 2
    assert template["restartPolicy"] == "RecreateGroupOnPodRestart"
    for pod in pod_templates(group):
        wrapped = {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": {"name": "m"},
            "template": pod,
        }
        kubernetes_validate.validate(wrapped, KUBERNETES[-1], strict=True)


def test_leader_runs_the_service_and_the_first_node_of_vllm(leader: Object) -> None:
    container = main_container(leader)
    assert container["name"] == "service"
    assert vllm_args(container) == {
        "nnodes": 2,
        "node_rank": 0,
        "master_addr": "$(LWS_LEADER_ADDRESS)",
        "tensor_parallel_size": 8,
        "pipeline_parallel_size": 2,
        "max_model_len": 16384,
        "trust_remote_code": False,
        "compilation_config": {"cudagraph_mode": "PIECEWISE"},
    }
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()


def test_worker_runs_vllm_with_the_arguments_of_the_leader(leader: Object, worker: Object) -> None:
    container = main_container(worker)
    assert container["command"] == ["/opt/chatrpc/bin/vllm", "serve"]
    model, headless, *options = container["args"]
    assert model == argument(main_container(leader)["args"], "model")
    assert headless == "--headless"
    expected = vllm_args(main_container(leader)) | {"node_rank": "$(LWS_WORKER_INDEX)"}
    assert sorted(options) == sorted(as_option(*each) for each in expected.items())
    assert main_container(worker)["image"] == main_container(leader)["image"]


def as_option(name: str, value: object) -> str:
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return f"--{name}={text}"


def test_worker_has_no_probes_ports_or_secrets_of_the_service(worker: Object) -> None:
    container = main_container(worker)
    unwanted = {"startupProbe", "readinessProbe", "livenessProbe", "ports", "lifecycle"}
    assert not unwanted & container.keys()
    assert mounts(worker).keys() == {"tmp", "shm", "model"}
    assert {volume["name"] for volume in worker["spec"]["volumes"]} == mounts(worker).keys()


def test_all_nodes_of_a_group_have_the_resources_and_the_network(
    leader: Object, worker: Object
) -> None:
    first, second = main_container(leader), main_container(worker)
    assert first["resources"] == second["resources"]
    assert first["env"] == second["env"]
    address = {
        "name": "VLLM_HOST_IP",
        "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}},
    }
    assert address in first["env"]
    assert leader["spec"].get("topologySpreadConstraints") is None


def test_service_of_a_group_has_only_its_leader(
    nodes: Release, leader: Object, worker: Object
) -> None:
    # The controller creates a Service with the name of the group.
    service = nodes.one("Service", "demo-chatrpc-deepseek-v3")
    assert GROUP not in {each["metadata"]["name"] for each in nodes.all("Service")}
    selector = service["spec"]["selector"].items()
    assert selector <= leader["metadata"]["labels"].items()
    assert not selector <= worker["metadata"]["labels"].items()


def test_pods_of_a_group_reach_one_another_and_nothing_else_reaches_a_worker(
    nodes: Release, leader: Object, worker: Object
) -> None:
    policies = [
        policy["spec"]
        for policy in nodes.all("NetworkPolicy")
        if policy["spec"]["podSelector"]["matchLabels"].items()
        <= worker["metadata"]["labels"].items()
    ]
    (policy,) = policies
    (rule,) = policy["ingress"]
    assert "ports" not in rule
    (peer,) = rule["from"]
    for pod in (leader, worker):
        assert peer["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    gateway = nodes.one("Deployment", "demo-chatrpc-gateway")["spec"]["template"]
    selector = peer["podSelector"]["matchLabels"].items()
    assert not selector <= gateway["metadata"]["labels"].items()
    assert {"podSelector": peer["podSelector"]} in [
        target for rule in policy["egress"] for target in rule.get("to", ())
    ]


def test_group_is_scaled_and_disrupted_as_a_whole(nodes: Release, worker: Object) -> None:
    (scaled,) = nodes.all("ScaledObject")
    target = scaled["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("LeaderWorkerSet", GROUP)
    assert target["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
    for trigger in scaled["spec"]["triggers"]:
        assert f'pod=~"{GROUP}-[0-9]+"' in trigger["metadata"]["query"]
    budget = nodes.one("PodDisruptionBudget", "demo-chatrpc-deepseek-v3")["spec"]
    assert budget["selector"]["matchLabels"].items() <= worker["metadata"]["labels"].items()


def test_gateway_routes_to_replicas_by_the_beginning_of_prompts(
    releases: dict[str, Release],
) -> None:
    release = releases["vllm-replicas"]
    deployment = release.one("Deployment", "demo-chatrpc-qwen3-8b")["spec"]
    assert deployment["replicas"] == 4
    container = deployment["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert not [word for word in container["args"] if word.startswith("--vllm-args")]
    assert release.one("Service", "demo-chatrpc-qwen3-8b")["spec"]["clusterIP"] == "None"
    registry = release.one("ConfigMap", "demo-chatrpc-gateway-registry")["data"]["registry.toml"]
    (model,) = tomllib.loads(registry)["model"]
    assert (model["balance"], model["affinity"]) == ("ring_hash", "prefix")


def test_notes_show_how_to_wait_for_a_group(nodes: Release) -> None:
    assert f"wait --for=condition=Available leaderworkerset/{GROUP} --timeout=7200s" in nodes.notes
    assert "rollout status" not in nodes.notes
