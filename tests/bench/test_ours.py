"""Our own service as a server to measure."""

import pytest

from bench.ours import VARIANTS, server
from bench.roster import our_entries
from bench.server import Ports


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_is_the_service_with_its_options_after_the_gateway(variant: str) -> None:
    service, gateway = server(variant).commands(Ports(http=1, grpc=2))
    assert (
        list(VARIANTS[variant].options) == list(service)[-4 - len(VARIANTS[variant].options) : -4]
    )
    assert gateway[gateway.index("--upstream") + 1] == "127.0.0.1:2"
    assert gateway[gateway.index("--port") + 1] == "1"


def test_default_variant_has_its_layers_and_all_loads() -> None:
    default, exact, ngram = our_entries(VARIANTS)
    assert set(exact.loads) < set(default.loads)
    assert default.grpc_loads == default.engine_loads == ("c32",)
    assert not exact.engine_loads
    assert ngram.loads == ("c1", "edit")


def test_unselected_entries_are_left_out() -> None:
    default, *_ = our_entries(["chatrpc"])
    assert default.only({"c1"}).loads == ["c1"]
    assert not default.only({"c1"}).engine_loads
    assert default.only({"nothing"}).is_idle
