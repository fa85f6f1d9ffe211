"""The chart's models of OpenAI-compatible services."""

import pytest

from service.config import ServiceSettings
from tests.deploy.chart import Object, Release, deployment_container, main_container, settings_of


@pytest.fixture(scope="session")
def release(releases: dict[str, Release]) -> Release:
    return releases["upstream"]


def pod_spec(release: Release, name: str) -> Object:
    found = release.one("Deployment", name)["spec"]["template"]["spec"]
    assert isinstance(found, dict)
    return found


def test_upstreams_reach_the_settings(release: Release) -> None:
    hosted = settings_of(deployment_container(release, "demo-chatrpc-gpt-5-mini"))
    assert isinstance(hosted, ServiceSettings)
    assert (hosted.engine, hosted.upstream_dialect) == ("openai", "openai")
    assert hosted.upstream_url == ["https://api.openai.com/v1"]
    assert (hosted.upstream_model, hosted.served_model_name) == ("gpt-5-mini", "gpt-5-mini")
    assert hosted.upstream_read_timeout_s == 120
    local = settings_of(deployment_container(release, "demo-chatrpc-qwen3-32b"))
    assert isinstance(local, ServiceSettings)
    assert len(local.upstream_url) == 2
    assert (local.upstream_model, local.served_model_name) == ("Qwen/Qwen3-32B", "qwen3-32b")


def test_key_of_an_upstream_is_a_file_of_its_secret(release: Release) -> None:
    spec = pod_spec(release, "demo-chatrpc-gpt-5-mini")
    settings = settings_of(main_container({"spec": spec}))
    assert isinstance(settings, ServiceSettings)
    path = settings.upstream_api_key_file
    assert path is not None
    (mount,) = (m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "upstream-key")
    assert str(path.parent) == mount["mountPath"]
    (volume,) = (v["secret"] for v in spec["volumes"] if v["name"] == "upstream-key")
    assert volume["secretName"] == "openai-key"
    assert volume["items"] == [{"key": "api-key", "path": path.name}]


def test_service_without_a_model_has_the_small_image_and_no_place_for_weights(
    release: Release,
) -> None:
    for name in ("demo-chatrpc-gpt-5-mini", "demo-chatrpc-qwen3-32b"):
        spec = pod_spec(release, name)
        container = main_container({"spec": spec})
        assert container["image"] == "registry.example.com/chatrpc-service-upstream:0.1.0"
        assert "env" not in container
        assert {volume["name"] for volume in spec["volumes"]} <= {
            *("tmp", "upstream-key", "upstream-ca", "upstream-tls"),
        }
        unwanted = ("--model=", "--device", "--num-threads", "--cache-dir")
        assert not [word for word in container["args"] if word.startswith(unwanted)]
