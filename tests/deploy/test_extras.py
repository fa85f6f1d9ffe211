"""The extras of pyproject.toml: each engine's packages, and versions that satisfy all of them."""

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.docker.pin import IN_IMAGES, extra_requirements
from tests.deploy.image import ROOT

_HEAVY = {"torch", "transformers", "llguidance", "tokenizers", "vllm", "accelerate"}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "deploy" / "docker" / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def requirements(*extras: str) -> list[Requirement]:
    return [requirement for extra in ("", *extras) for requirement in extra_requirements(extra)]


def names(*extras: str) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements(*extras)}


def test_service_without_an_engine_needs_no_package_of_a_model() -> None:
    assert not names("service") & _HEAVY
    assert not names("upstream") & _HEAVY


def test_text_layer_needs_neither_torch_nor_transformers() -> None:
    assert not names("text") & {"torch", "transformers", "safetensors", "accelerate"}


def test_only_the_own_engine_pins_packages() -> None:
    exact = {
        requirement.name
        for requirement in requirements("service", "text", "vllm", "upstream")
        if any(each.operator == "==" and "*" not in each.version for each in requirement.specifier)
    }
    assert not exact


@pytest.mark.parametrize(
    ("constraints", "extras"),
    [
        ("constraints.txt", IN_IMAGES),
        ("constraints-vllm.txt", ("service", "text", "vllm", "vllm-protocol", "cli", "otel")),
    ],
)
def test_constraints_of_an_image_satisfy_its_extras(
    constraints: str, extras: tuple[str, ...]
) -> None:
    pinned = pins(constraints)
    for requirement in requirements(*extras):
        if requirement.marker is None or requirement.marker.evaluate():
            version = pinned[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement}: run `make constraints`"
