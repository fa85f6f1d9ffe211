"""What the chart can be told, and what it refuses."""

import json
import tomllib

import pytest

from tests.deploy.chart import (
    CHART,
    INSECURE,
    ROOT,
    Object,
    Release,
    containers,
    merged,
    refusal,
    render,
    values_file,
)


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
def test_nonsense_is_refused_by_name(values: Object, expected: str) -> None:
    assert expected in refusal(merged(INSECURE, values))


def test_without_a_gateway_somebody_else_has_to_reach_the_services() -> None:
    alone: Object = {"gateway": {"enabled": False}}
    peers: Object = {"grpcFrom": [{"podSelector": {"matchLabels": {"app": "backend"}}}]}
    for policy in (peers, {"enabled": False}):
        release = render(merged(INSECURE, alone, {"networkPolicy": policy}))
        assert [each["metadata"]["name"] for each in release.all("Deployment")] == [
            "demo-chatrpc-smollm2"
        ]


def test_a_test_that_would_be_refused_is_not_made(releases: dict[str, Release]) -> None:
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
