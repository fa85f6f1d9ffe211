"""Our own service as a server to measure."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.model import Model
from bench.ours import VARIANTS, server
from bench.roster import our_entries
from bench.server import Ports
from tests.bench.models import tiny


@pytest.fixture
def model(tmp_path: Path) -> Model:
    model = tiny(tmp_path)
    (tmp_path / "q4_k_m.gguf").hardlink_to(tmp_path / "q4_0.gguf")
    return model


def test_variant_is_the_service_with_its_options_after_the_gateway(model: Model) -> None:
    for name, variant in VARIANTS.items():
        service, gateway = server(name, model).commands(Ports(http=1, grpc=2))
        text = " ".join(service)
        assert " ".join(("--served-model-name", "tiny", *variant.options)) in text
        file = f"{variant.gguf}.gguf".lower() if variant.gguf else "bf16"
        assert f"--model {model.directory / file}" in text
        assert gateway[gateway.index("--upstream") + 1] == "127.0.0.1:2"
        assert gateway[gateway.index("--port") + 1] == "1"


def test_model_with_random_weights_is_served_without_drafts(model: Model) -> None:
    random = replace(model, is_random=True)
    for name in ("chatrpc", "chatrpc-int4", "chatrpc-plain"):
        options = server(name, random).engine_options
        assert options.count("--speculation") == 1
        assert options[options.index("--speculation") + 1] == "none"
    assert "`--speculation none`" in server("chatrpc", random).settings
    assert "--speculation" not in server("chatrpc", model).engine_options


def test_weights_of_a_decode_step_are_those_of_layers_and_head(model: Model) -> None:
    facts = model.facts
    num_weights = facts.num_layer_weights + facts.num_head_weights
    assert server("chatrpc", model).weight_bytes == num_weights
    assert server("chatrpc-exact", model).weight_bytes == 2 * num_weights


def test_default_variant_has_its_layers_and_others_have_their_loads(model: Model) -> None:
    loads = ("c1", "c32", "stall", "edit")
    default, plain = our_entries(["chatrpc", "chatrpc-plain"], model, loads, print, has_layers=True)
    assert list(default.loads) == list(loads)
    assert default.grpc_loads == default.engine_loads == ["c32"]
    assert list(plain.loads) == ["c1", "c32", "edit"]
    assert not plain.engine_loads


def test_unselected_targets_are_left_out(model: Model) -> None:
    [default] = our_entries(["chatrpc"], model, ("c1", "c32"), print, has_layers=True)
    assert list(default.targets) == ["chatrpc", "chatrpc/grpc", "chatrpc/engine"]
    assert default.only({"c1"}).targets == {"chatrpc": ["c1"]}
    assert not default.only({"nothing"}).targets
