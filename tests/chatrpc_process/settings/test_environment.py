"""Classification of environment variables."""

import pytest

from chatrpc_process.settings.environment import classify

OPTIONS = {"host", "port", "admin_port", "max_num_seqs", "upstream"}


def unknown(**environment: str) -> set[str]:
    return set(classify(environment, "CHATRPC_SERVICE_", OPTIONS).unknown)


def links(**environment: str) -> set[str]:
    return set(classify(environment, "CHATRPC_SERVICE_", OPTIONS).links)


@pytest.mark.parametrize("name", ["CHATRPC_SERVICE_MAX_NUM_SEQS", "chatrpc_service_max_num_seqs"])
def test_option_is_neither_unknown_nor_a_link(name: str) -> None:
    assert not unknown(**{name: "3"})
    assert not links(**{name: "3"})


@pytest.mark.parametrize(
    "name",
    [
        "CHATRPC_SERVICE_MAX_NUM_SEQ",
        "CHATRPC_SERVICE_",
        "CHATRPC_SERVICE_PORTS",
        "CHATRPC_SERVICE_PORT_GRPC",
        "CHATRPC_SERVICE_HOSTNAME",
        "chatrpc_service_hosts",
    ],
)
def test_variable_with_the_prefix_that_is_no_option_is_unknown(name: str) -> None:
    assert unknown(**{name: "3"}) == {name.upper()}


def test_variables_without_the_prefix_are_ignored() -> None:
    others = {
        "CHATRPC_TARGET": "x",
        "CHATRPC_GATEWAY_X": "y",
        "PATH": "/bin",
        "CHATRPC_SERVICE": "",
    }
    assert not unknown(**others)
    assert not links(**others)


def service_links(name: str, host: str, port: int, *names: str) -> dict[str, str]:
    """Return the variables that Kubernetes sets in a pod for a Service of this name."""
    stem, url = name.upper().replace("-", "_"), f"tcp://{host}:{port}"
    address = host.strip("[]")
    return {
        f"{stem}_SERVICE_HOST": address,
        f"{stem}_SERVICE_PORT": str(port),
        **{f"{stem}_SERVICE_PORT_{each.upper()}": str(port) for each in names},
        f"{stem}_PORT": url,
        f"{stem}_PORT_{port}_TCP": url,
        f"{stem}_PORT_{port}_TCP_PROTO": "tcp",
        f"{stem}_PORT_{port}_TCP_PORT": str(port),
        f"{stem}_PORT_{port}_TCP_ADDR": address,
    }


@pytest.mark.parametrize("host", ["10.96.3.7", "[fd00::7]"])
@pytest.mark.parametrize(
    "name", ["chatrpc", "chatrpc-service", "chatrpc-service-metrics", "chatrpc-service-admin"]
)
def test_variables_of_a_kubernetes_service_are_links(name: str, host: str) -> None:
    given = service_links(name, host, 50051, "grpc", "grpc_web")
    assert not unknown(**given)
    assert links(**given) == {each for each in given if each.startswith("CHATRPC_SERVICE_")}


def test_options_of_a_container_take_precedence_over_links() -> None:
    given = service_links("chatrpc-service", "10.96.3.7", 50051)
    given["CHATRPC_SERVICE_PORT"] = "6000"
    assert "CHATRPC_SERVICE_PORT" not in links(**given)
    assert not unknown(**given)
    given = service_links("chatrpc", "10.96.3.7", 50051, "grpc")
    for option, value in (("CHATRPC_SERVICE_HOST", "0.0.0.0"), ("CHATRPC_SERVICE_PORT", "6000")):  # noqa: S104
        found = links(**given | {option: value})
        assert found == {"CHATRPC_SERVICE_PORT_GRPC"}
