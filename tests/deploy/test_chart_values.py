"""The values of the chart, and the values that it rejects."""

import itertools
import json
import math
import tomllib

import kubernetes_validate
import pytest

from tests.deploy.chart import (
    CHART,
    CUSTOM,
    INSECURE,
    ROOT,
    Object,
    Release,
    containers,
    merged,
    rejection,
    render,
    values_file,
)
from tests.support.params import slow_but


def test_insecure_access_requires_an_explicit_value() -> None:
    assert "access.gatewayKeys.secret" in rejection({})
    keys: Object = {"access": {"gatewayKeys": {"secret": "keys"}}}
    protected = render(keys)
    (gateway,) = containers(protected, "gateway")
    assert "--insecure" not in gateway["args"]
    (service,) = containers(protected, "service")  # a network policy protects it
    assert "--insecure" in service["args"]
    open_inside = merged(keys, {"networkPolicy": {"enabled": False}})
    assert "networkPolicy.enabled" in rejection(open_inside)
    guarded = render(merged(open_inside, {"access": {"serviceKeys": {"secret": "keys"}}}))
    (service,) = containers(guarded, "service")
    assert "--insecure" not in service["args"]
    certificates: Object = {"tls": {"gateway": {"secret": "tls", "clientCertificates": True}}}
    (gateway,) = containers(render(certificates), "gateway")
    assert "--insecure" not in gateway["args"]
    assert "access" in rejection({"tls": {"gateway": {"secret": "tls"}}})


def one(**values: object) -> Object:
    """Return values with one model."""
    return {"models": [{"name": "m", "model": "m"} | values]}


def vllm(**values: object) -> Object:
    """Return values with one model on one GPU that vLLM serves."""
    defaults: Object = {
        "model": "/weights/m",
        "engine": "vllm",
        "gpu": {"count": 1},
        "storage": {"kind": "emptyDir"},
    }
    return one(**(defaults | values))


def upstream(**values: object) -> Object:
    """Return values with one model of an OpenAI-compatible service."""
    given = {"name": "m", "engine": "openai", "upstream": {"urls": ["http://a"]}}
    return {"models": [given | values]}


def group(**values: object) -> Object:
    """Return values with one model that vLLM serves on two nodes."""
    args = {"nodes": 2, "args": {"pipeline_parallel_size": 2}}
    return vllm(**({"vllm": args} | values))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"modles": []}, "modles"),
        ({"models": [{"model": "m"}]}, "name"),
        ({"models": [{"name": "-m-", "model": "m"}]}, "name"),
        ({"models": [{"name": "org/m", "model": "m"}]}, "name"),
        ({"models": [{"name": "m" * 64, "model": "m"}]}, "name"),
        ({"models": [{"name": "gateway", "model": "m"}]}, "set resourceName"),
        ({"models": [{"name": "Gateway", "model": "m"}]}, "set resourceName"),
        ({"models": [{"name": "m", "resourceName": "M_1", "model": "m"}]}, "resourceName"),
        ({"models": [{"name": "m", "resourceName": "gateway", "model": "m"}]}, "resourceName"),
        (
            {"models": [{"name": "a.b", "model": "m"}, {"name": "A-b", "model": "m"}]},
            "the objects of a.b and A-b would both be called a-b",
        ),
        *((one(model=url), "model") for url in ("s3://b/m", "https://h/m", "hf://m", "a b")),
        (one(model="org/m"), "set storage.kind to emptyDir or pvc"),
        (
            one(model="org/m", storage={"kind": "image", "reference": "r:1"}),
            "set storage.kind to emptyDir or pvc",
        ),
        (one(replicas=3, storage={"kind": "pvc"}), "set storage.accessModes to [ReadWriteMany]"),
        (
            one(storage={"kind": "pvc"}, autoscaling={"kind": "hpa"}),
            "ReadWriteOnce is for one replica, and there can be 4",
        ),
        (
            one(replicas=2, storage={"kind": "pvc", "accessModes": ["ReadWriteOncePod"]}),
            "ReadWriteOncePod is for one replica",
        ),
        (one(storage={"kind": "pvc"}, strategy={"maxSurge": 1}), "strategy.maxSurge has to be 0"),
        (one(storage={"kind": "pvc", "readOnly": True}), "readOnly needs storage.existingClaim"),
        (
            one(storage={"kind": "pvc", "accessModes": ["ReadOnlyMany"]}),
            "ReadOnlyMany needs storage.existingClaim",
        ),
        (one(storage={"existingClaim": "c"}), "need storage.kind pvc"),
        (one(prefixCache={"kind": "pvc"}), "prefixCache.existingClaim need each other"),
        (
            one(prefixCache={"kind": "emptyDir", "existingClaim": "c"}),
            "prefixCache.existingClaim need each other",
        ),
        (
            one(prefixCache={"kind": "emptyDir"}, options={"prefix-caching": False}),
            "prefixCache needs options.prefix-caching",
        ),
        (upstream(prefixCache={"kind": "emptyDir"}), "prefixCache needs engine auto or local"),
        (one(options={"prefix-cache-dir": "/cache"}), "prefix-cache-dir"),
        (one(storage={"reference": "r"}), "storage.reference needs storage.kind image"),
        (one(gpu={"count": 2}), "this engine uses one GPU: set gpu.count to 1, or engine to vllm"),
        (one(engine="vlm"), "engine"),
        (one(options={"engine": "local"}), "engine"),
        (one(vllm={"args": {"tensor_parallel_size": 2}}), "need engine vllm"),
        (one(vllm={"nodes": 2}), "need engine vllm"),
        (vllm(model="m"), "the image with vLLM has no embedded model"),
        (vllm(gpu={"count": 0}), "need 1 GPUs, and vllm.nodes times gpu.count is 0"),
        (vllm(gpu={"count": 4}), "need 1 GPUs, and vllm.nodes times gpu.count is 4"),
        (
            vllm(vllm={"nodes": 2, "args": {"tensor_parallel_size": 4}}),
            "need 4 GPUs, and vllm.nodes times gpu.count is 2",
        ),
        *((vllm(vllm={"args": {name: "x"}}), name) for name in ("node_rank", "master_addr")),
        *((vllm(vllm={"args": {name: "x"}}), name) for name in ("model", "max-model-len")),
        ({"models": [{"name": "m", "engine": "openai"}]}, "engine openai needs upstream.urls"),
        (upstream(model="m"), "set upstream.model in place of model"),
        (upstream(gpu={"count": 1}), "neither gpu.count nor storage"),
        (upstream(storage={"kind": "emptyDir"}), "neither gpu.count nor storage"),
        (upstream(upstream={"urls": ["upstream:8000"]}), "urls"),
        (upstream(upstream={"urls": ["http://a,http://b"]}), "urls"),
        (upstream(upstream={"dialect": "azure"}), "dialect"),
        (one(upstream={"urls": ["http://a"]}), "upstream needs engine openai"),
        (group(storage={"kind": "pvc"}), "is for one node, and vllm.nodes is 2"),
        (group(options={"max-num-seqs": 8}), "set vllm.args.max_num_seqs in place of options"),
        (group(resourceName="m" * 30, name="m"), "is too long for the pods of a group"),
        (one(drain={"timeoutSeconds": 121}), "set gateway.drain.timeoutSeconds to 121 or more"),
        (one(autoscaling={"metrics": [{"type": "Resource"}]}), "needs autoscaling.kind hpa"),
        (one(grpcRoute={"enabled": True}), "grpcRoute.parentRefs"),
        (one(probes={"startup": {"failureThreshold": 1}}), "failureThreshold"),
        (one(initContainers=[{"image": "x"}]), "name"),
        (one(resources={"tmpSize": "big"}), "tmpSize"),
        ({"gateway": {"ingress": {"enabled": True}}}, "ingress.hosts"),
        ({"gateway": {"ingress": {"paths": [{"path": "x", "pathType": "Prefix"}]}}}, "path"),
        ({"gateway": {"httpRoute": {"enabled": True}}}, "httpRoute.parentRefs"),
        (
            {"gateway": {"autoscaling": {"enabled": True, "minReplicas": 9}}},
            "minReplicas is more than maxReplicas",
        ),
        (
            {
                "gateway": {"enabled": False, "autoscaling": {"enabled": True}},
                "networkPolicy": {"enabled": False},
            },
            "need gateway.enabled",
        ),
        (
            {"monitoring": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}},
            "enable one",
        ),
        ({"models": [{"name": "m"}]}, "model is missing"),
        ({"models": [{"name": "m", "model": "m", "replica": 2}]}, "replica"),
        ({"models": [{"name": "m", "model": "m", "options": {"port": 1}}]}, "port"),
        ({"models": [{"name": "m", "model": "m", "options": {"max_num_seqs": 1}}]}, "max_num_seqs"),
        ({"models": [{"name": "m", "model": "m", "options": {"max-num-seq": 1}}]}, "max-num-seq'"),
        ({"gateway": {"options": {"max-connection": 1}}}, "max-connection'"),
        ({"gateway": {"enabled": False}}, "networkPolicy.grpcFrom"),
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
        (
            {
                "models": [
                    {
                        "name": "m",
                        "model": "m",
                        "autoscaling": {"kind": "hpa", "minReplicas": 5, "maxReplicas": 4},
                    }
                ]
            },
            "minReplicas is more",
        ),
        (
            {
                "models": [
                    {"name": "m", "model": "m", "autoscaling": {"kind": "keda", "minReplicas": 0}}
                ]
            },
            "minReplicas",
        ),
        ({"modelDefaults": {"name": "m"}}, "modelDefaults"),
        ({"gateway": {"options": {"registry": "x"}}}, "registry"),
        ({"gateway": {"service": {"port": 0}}}, "port"),
        ({"gateway": {"replicas": "two"}}, "replicas"),
        ({"access": {"gatewayKeys": {"secret": 1}}}, "secret"),
        ({"tls": {"grpc": {"clientSecret": "client"}}}, "secret"),
        ({"tls": {"gateway": {"clientCertificates": True}}}, "secret"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"listen": "10.0.0.1"}, "listen"),
        ({"monitoring": {"otlpEndpoint": "collector:4318"}}, "otlpEndpoint"),
    ],
)
def test_invalid_value_is_rejected_by_name(values: Object, expected: str) -> None:
    assert expected in rejection(merged(INSECURE, values))


def test_release_without_a_gateway_requires_other_clients() -> None:
    alone: Object = {"gateway": {"enabled": False}}
    peers: Object = {"grpcFrom": [{"podSelector": {"matchLabels": {"app": "backend"}}}]}
    for policy in (peers, {"enabled": False}):
        release = render(merged(INSECURE, alone, {"networkPolicy": policy}))
        assert [each["metadata"]["name"] for each in release.all("Deployment")] == [
            "demo-chatrpc-smollm2"
        ]


def test_helm_test_that_would_be_rejected_is_left_out(releases: dict[str, Release]) -> None:
    values: Object = {"tls": {"gateway": {"secret": "tls", "clientCertificates": True}}}
    elsewhere: Object = {
        "models": [],
        "gateway": {"registryExtra": '[[model]]\nname = "a"\ntarget = "dns:///a:50051"\n'},
    }
    for without in (render(values), render(merged(INSECURE, elsewhere))):
        assert not without.all("Pod")
        assert "helm test" not in without.notes
    for release in (render(merged(values, {"tests": {"certificateSecret": "test"}})),
                    releases["minimal"], releases["keys-and-tls"]):  # fmt: skip
        assert release.one("Pod", "demo-chatrpc-test")
        assert "helm test demo" in release.notes
    assert "--certificate=" not in " ".join(containers(releases["minimal"], "smoke")[0]["args"])


def test_each_value_is_in_the_schema() -> None:
    """The schema allows only values that the chart has, and has all of them."""
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
        if known is None:  # a map that the operator fills
            return
        own = {"name", "global"} if path in {".modelDefaults", ""} else set()
        assert values.keys() == known.keys() - (own - values.keys()), path
        for key, value in values.items():
            if isinstance(value, dict):
                compare(value, known[key], f"{path}.{key}")

    compare(values_file(CHART / "values.yaml"), schema, "")


def test_chart_version_is_the_project_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    metadata = values_file(CHART / "Chart.yaml")
    assert metadata["appVersion"] == metadata["version"] == project["version"]


def test_notes_show_how_to_connect(releases: dict[str, Release]) -> None:
    assert "dns:///demo-chatrpc-smollm2.prod.svc:50051" in releases["minimal"].notes
    assert "access.insecure is true" in releases["minimal"].notes
    assert "access.insecure" not in releases["keys-and-tls"].notes
    assert "https://demo-chatrpc-gateway.prod.svc" in releases["keys-and-tls"].notes


def test_notes_warn_that_key_limits_apply_per_gateway() -> None:
    keys: Object = {"access": {"gatewayKeys": {"secret": "keys"}}}
    assert "with 2 gateways, a key may use 2 times" in render(keys).notes
    scaled: Object = {"gateway": {"autoscaling": {"enabled": True}}}
    assert "with 6 gateways, a key may use 6 times" in render(merged(keys, scaled)).notes
    for values in (merged(keys, {"gateway": {"replicas": 1}}), INSECURE):
        assert "Limits of API keys" not in render(values).notes


def test_notes_warn_that_scraping_is_blocked() -> None:
    monitored: Object = merged(INSECURE, {"monitoring": {"podMonitor": {"enabled": True}}})
    peers: list[Object] = [{"podSelector": {}}]
    assert "networkPolicy.metricsFrom" in render(monitored).notes
    for policy in ({"metricsFrom": peers}, {"enabled": False}):
        notes = render(merged(monitored, {"networkPolicy": policy})).notes
        assert "metricsFrom" not in notes


@pytest.mark.parametrize(
    "storage",
    [
        {"kind": "pvc", "accessModes": ["ReadWriteMany"]},
        {"kind": "pvc", "accessModes": ["ReadWriteOnce", "ReadWriteMany"]},
        {"kind": "pvc", "existingClaim": "weights", "readOnly": True},
        {"kind": "emptyDir"},
    ],
)
def test_several_replicas_require_shared_storage(storage: Object) -> None:
    release = render(merged(INSECURE, one(model="org/m", replicas=3, storage=storage)))
    assert release.one("Deployment", "demo-chatrpc-m")["spec"]["replicas"] == 3


# Each of these values is allowed by itself, so any combination has to be allowed too.
_MIXES: dict[str, list[Object]] = {
    "model": [
        one(),
        one(name="Q.w_e"),
        one(model="org/m", storage={"kind": "emptyDir"}),
        group(grpcRoute={"enabled": True, "parentRefs": [{"name": "edge"}]}),
        upstream(env=[{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]),
    ],
    "gateway": [{}, {"gateway": {"autoscaling": {"enabled": True}, "minReadySeconds": 5}}],
    "access": [INSECURE, {"access": {"gatewayKeys": {"secret": "keys"}}}],
    "tls": [{}, {"tls": {"grpc": {"secret": "g"}, "gateway": {"secret": "h"}}}],
    "monitoring": [
        {},
        {"monitoring": {"podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}},
        {"monitoring": {"serviceMonitor": {"enabled": True}, "annotations": True}},
    ],
}


_NUM_MIXES = math.prod(len(each) for each in _MIXES.values())


@pytest.mark.parametrize("number", slow_but({0, _NUM_MIXES - 1}, range(_NUM_MIXES)))
def test_combined_values_give_valid_objects(number: int) -> None:
    values = list(itertools.product(*_MIXES.values()))[number]
    release = render(merged(*values))
    for each in release.objects:
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, "1.37", strict=True)
    names = [(each["kind"], each["metadata"]["name"]) for each in release.objects]
    assert len(names) == len(set(names))
