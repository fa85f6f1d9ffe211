"""The compose file, checked by the schema of the specification and by our own reader."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from chatrpc_process.settings.process import ProcessSettings
from gateway_http.config import Settings as GatewaySettings
from service.config import ServiceSettings
from tests.deploy.chart import ROOT, merged
from tests.deploy.dockerfile import parse
from tests.support.process_options import argument, options, parsed, unknown_variables

DEPLOY = ROOT / "deploy"
KINDS: dict[str, type[ProcessSettings]] = {"service": ServiceSettings, "gateway": GatewaySettings}


def services(*names: str) -> dict[str, Any]:
    """Return the services of several files. Later files take precedence."""
    files = [yaml.safe_load((DEPLOY / name).read_text()) for name in names]
    found: dict[str, Any] = merged(*files)["services"]
    return found


SERVICES = services("compose.yaml")
# A file of its own, which takes the gateway from the other file.
VLLM = services("compose.vllm.yaml")
OURS = [*SERVICES.values(), VLLM["service"]]


def read(name: str) -> PyCompose:
    """Read a compose file with its variables unset: the schema does not allow expressions."""
    text = yaml.safe_dump(yaml.safe_load((DEPLOY / name).read_text()))
    for variable, default in (
        ("LISTEN", "127.0.0.1"),
        ("HTTP_PORT", "8000"),
        ("CPUS", "2.0"),
        ("MEMORY", "3g"),
        ("MODEL", "smollm2-135m-instruct"),
        ("CACHE_DIR", "/opt/chatrpc/cache"),
        ("MODEL", "Qwen/Qwen3-8B"),
        ("SHM", "8g"),
        ("GPUS", "1"),
    ):
        text = text.replace(f"${{{variable}:-{default}}}", default)
    assert "${" not in text
    compose = PyCompose.from_yaml(text)
    compose.validate()
    return compose


def test_compose_file_is_valid() -> None:
    assert set(read("compose.yaml").service_names()) == set(SERVICES)
    assert read("compose.keys.yaml").service_names() == ["gateway"]
    assert set(read("compose.vllm.yaml").service_names()) == {"service", "gateway"}


def test_compose_file_with_a_misspelled_key_is_invalid() -> None:
    with pytest.raises(ValueError, match="imagee"):
        PyCompose.from_yaml("services: {a: {imagee: b}}")


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.keys.yaml"]])
@pytest.mark.parametrize("name", sorted(KINDS))
def test_processes_take_their_arguments(
    files: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATRPC_GATEWAY_ADMIN_PORT", "8001")  # set by its image
    service = services(*files)[name]
    settings = parsed(KINDS[name], service["command"])
    assert argument(service["command"], "admin-host") == "0.0.0.0"  # noqa: S104  # of a container
    assert not unknown_variables(service.get("environment", {}))
    if isinstance(settings, GatewaySettings):
        assert settings.upstream == "dns:///service:50051"


def test_service_with_vllm_takes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    service = VLLM["service"]
    image = parse(DEPLOY / "docker" / "service-vllm.Dockerfile").final.environment
    for name, value in image.items():
        monkeypatch.setenv(name, value)
    arguments = [word.replace("${GPUS:-1}", "4") for word in service["command"]]
    settings = parsed(ServiceSettings, arguments)
    assert isinstance(settings, ServiceSettings)
    assert settings.engine == "vllm"
    assert settings.vllm_args == {"tensor_parallel_size": 4}
    assert not unknown_variables(service["environment"])


def test_service_with_vllm_has_gpus_shared_memory_and_caches() -> None:
    service = VLLM["service"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "${GPUS:-1}", "capabilities": ["gpu"]}
    assert service["shm_size"] == "${SHM:-8g}"
    # Compiled kernels are loaded from /tmp.
    assert service["tmpfs"] == ["/tmp:exec,mode=1777"]  # noqa: S108  # of a container
    (volume,) = service["volumes"]
    target = volume.partition(":")[2]
    environment = service["environment"]
    for name in ("HF_HOME", "VLLM_CACHE_ROOT", "CHATRPC_SERVICE_CACHE_DIR"):
        assert environment[name].startswith(target)


def test_gateway_in_front_of_vllm_is_that_of_the_other_file() -> None:
    assert VLLM["gateway"] == {"extends": {"file": "compose.yaml", "service": "gateway"}}
    files = [
        yaml.safe_load((DEPLOY / f).read_text()) for f in ("compose.yaml", "compose.vllm.yaml")
    ]
    assert files[1]["networks"] == files[0]["networks"]
    assert files[1]["name"] == files[0]["name"]


@pytest.mark.parametrize(
    "service",
    [pytest.param(each, id=each["image"]) for each in OURS if "build" in each],
)
def test_built_image_has_the_name_of_its_dockerfile(service: dict[str, Any]) -> None:
    context = DEPLOY / service["build"]["context"]
    file = parse(context / service["build"]["dockerfile"])
    title = file.final.one("LABEL").pairs["org.opencontainers.image.title"]
    arguments = {k: v for argument in file.final.all("ARG") for k, v in argument.pairs.items()}
    assert service["image"] == f"{title}:{arguments['VERSION']}"


def test_cache_directory_is_that_of_the_image_by_default() -> None:
    directory = SERVICES["service"]["environment"]["CHATRPC_SERVICE_CACHE_DIR"]
    image = parse(DEPLOY / "docker" / "service.Dockerfile").final.environment
    assert directory == f"${{CACHE_DIR:-{image['CHATRPC_SERVICE_CACHE_DIR']}}}"


def test_published_ports_are_bound_to_loopback() -> None:
    for service in OURS:
        for port in service.get("ports", []):
            assert port.startswith(("127.0.0.1:", "${LISTEN:-127.0.0.1}:"))
    assert "ports" not in SERVICES["service"]


def test_containers_have_no_unneeded_privileges() -> None:
    for service in OURS:
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_containers_restart_and_do_not_wait_for_each_other() -> None:
    for service in OURS:
        assert service["restart"] == "unless-stopped"
        assert service["init"] is True  # so SIGTERM ends a process that has no handler yet
    # If the service never gets ready, the gateway still runs and reports it.
    assert SERVICES["gateway"]["depends_on"] == ["service"]


def test_stop_grace_period_exceeds_the_drain() -> None:
    for each in (SERVICES["service"], SERVICES["gateway"], VLLM["service"]):
        grace = float(each["stop_grace_period"].removesuffix("s"))
        assert grace >= float(argument(each["command"], "drain-timeout-s")) + 10


def test_mounted_files_exist() -> None:
    for service in OURS:
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists()


def test_prometheus_scrapes_the_metrics_ports() -> None:
    jobs = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yml").read_text())["scrape_configs"]
    asked = {}
    for job in jobs:
        (lookup,) = job["dns_sd_configs"]
        (name,) = lookup["names"]
        asked[name] = lookup["port"]
    image = parse(DEPLOY / "docker" / "gateway.Dockerfile").final.environment
    assert asked == {
        "service": int(argument(SERVICES["service"]["command"], "metrics-port")),
        "gateway": int(image["CHATRPC_GATEWAY_ADMIN_PORT"]),
    }


def test_keys_replace_the_insecure_option() -> None:
    gateway = services("compose.yaml", "compose.keys.yaml")["gateway"]
    command = gateway["command"]
    assert "--insecure" not in command
    # A directory is mounted, so that a replaced file is seen. The directory must exist.
    (mount,) = gateway["volumes"]
    assert argument(command, "api-keys") == f"{mount['target']}/keys.toml"
    assert mount["source"] == "./keys"
    assert mount["bind"] == {"create_host_path": False}
    others = {a for a in SERVICES["gateway"]["command"] if a != "--insecure"}
    assert others <= set(command)
    assert "api-keys" in options(ServiceSettings)  # both processes have this option


def test_no_secret_is_in_the_files() -> None:
    for path in (*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.yml"), *DEPLOY.rglob("*.service")):
        assert isinstance(path, Path)
        assert "sk-" not in path.read_text().replace("sk-chatrpc-test", "")
