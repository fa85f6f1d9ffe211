"""The chart gives the processes valid options, and no secrets in them."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import trustme

from chatrpc_process.settings.process import ProcessSettings
from gateway_http.config import Settings as GatewaySettings
from gateway_http.upstream.registry import load_registry
from service.config import ServiceSettings
from tests.deploy.chart import (
    CHART,
    NAMESPACE,
    VALUES,
    Release,
    containers,
    deployment_container,
    main_container,
    merged,
    render,
    settings_of,
    values_file,
)
from tests.support.process_options import old_options, option, options


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
    assert small.request_timeout_s == 300.5
    assert small.num_threads == 2  # 1500m, rounded up
    assert (small.drain_delay_s, small.drain_timeout_s) == (0, 300)
    (gateway,) = (settings_of(container) for container in containers(release, "gateway"))
    assert isinstance(gateway, GatewaySettings)
    assert gateway.max_body_bytes == 16 << 20
    assert gateway.cors_allow_origins == ["https://chat.example.com", "https://docs.example.com"]
    gpu = settings_of(deployment_container(releases["gpu"], "demo-chatrpc-qwen3-8b"))
    assert isinstance(gpu, ServiceSettings)
    assert (gpu.device, gpu.num_threads) == ("cuda", None)
    assert gpu.served_model_name == "Qwen/Qwen3-8B"


# Options that the chart never sets: a registry replaces `--upstream`, values replace the file of
# options, the processes have to start, and the gateway hosts no models. A store of responses
# is a file of one machine.
NEVER = {
    "config",
    "check",
    *("response-store", "response-store-max-age-s", "response-store-max-bytes"),
    *("upstream", "upstream-ca", "upstream-certificate", "upstream-key", "upstream-api-key-file"),
    *("models", "models-memory", "model-idle-timeout-s"),
    *("model-load-timeout-s", "model-queue-size"),
}


@pytest.mark.parametrize(
    ("name", "kind"), [("service", ServiceSettings), ("gateway", GatewaySettings)]
)
def test_chart_accepts_exactly_the_options_of_the_processes(
    releases: dict[str, Release], name: str, kind: type[ProcessSettings]
) -> None:
    """Each option is accepted by its name or set by a value; the examples have all these values."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    parts = {"service": schema["definitions"]["model"], "gateway": schema["properties"]["gateway"]}
    by_name = set(parts[name]["properties"]["options"]["propertyNames"]["enum"])
    given = {
        example: {
            option(argument)
            for container in containers(release, name)
            for argument in container["args"]
        }
        for example, release in releases.items()
    }
    assert by_name.union(NEVER, *given.values()) >= options(kind)
    assert by_name <= (options(kind) | old_options(kind)) - NEVER
    # No option is set twice. The number of threads in the options replaces the chart's number.
    assert (given["minimal"] | given["keys-and-tls"]) & by_name <= {"num-threads"}


def test_old_name_of_an_option_sets_the_option() -> None:
    values = merged(
        values_file(VALUES["minimal"]),
        {"modelDefaults": {"options": {"max-request-s": 7, "message-timeout-s": 2.5}}},
    )
    (service,) = (settings_of(container) for container in containers(render(values), "service"))
    assert isinstance(service, ServiceSettings)
    assert (service.request_timeout_s, service.body_timeout_s) == (7, 2.5)


def test_secrets_are_not_in_arguments_or_environment(release: Release) -> None:
    for pod in release.pods():
        for container in pod["spec"]["containers"]:
            for variable in container.get("env", []):
                assert not re.search("KEY|TOKEN$|SECRET|PASSWORD", variable["name"])
            for word in container.get("args", []):
                assert not re.search(r"\bsk-|BEGIN|sha256=", word)
    assert not release.all("Secret")


def test_files_in_arguments_are_mounted(release: Release) -> None:
    for pod in release.pods():
        container = main_container(pod)
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


def registry_file(release: Release) -> str:
    (found,) = (m for m in release.all("ConfigMap") if m["metadata"]["name"].endswith("-registry"))
    text = found["data"]["registry.toml"]
    assert isinstance(text, str)
    return text


def registry(release: Release) -> list[dict[str, Any]]:
    models = tomllib.loads(registry_file(release))["model"]
    assert isinstance(models, list)
    return models


def test_gateway_reads_the_registry(release: Release, tmp_path: Path) -> None:
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


def test_registry_has_each_model_at_its_headless_service(release: Release) -> None:
    targets = {model["target"]: model for model in registry(release)}
    for service in release.all("Service"):
        name = service["metadata"]["name"]
        if service["spec"].get("clusterIP") == "None" and not name.endswith("-metrics"):
            model = targets.pop(f"dns:///{name}.{NAMESPACE}.svc:50051")
            settings = settings_of(deployment_container(release, name))
            assert isinstance(settings, ServiceSettings)
            assert settings.served_model_name == model["name"]
            assert settings.model_aliases == model["aliases"]
    assert set(targets) <= {"dns:///elsewhere.example.com:50051"}


def test_registry_names_the_tls_and_key_files(releases: dict[str, Release]) -> None:
    release = releases["keys-and-tls"]
    (model,) = registry(release)
    pod = release.one("Deployment", "demo-chatrpc-gateway")["spec"]["template"]["spec"]
    mounts = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    for field in ("ca", "certificate", "key", "api_key_file"):
        assert model[field].rpartition("/")[0] in mounts
    (trusted,) = (volume for volume in pod["volumes"] if volume["name"] == "upstream-tls")
    assert trusted["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]  # not its key
