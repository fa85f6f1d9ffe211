"""The fronts of one engine, and their costs."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from bench import fronts
from bench.loads import of_fronts
from bench.model import Model
from bench.peers import vllm
from bench.results import Machine, Results, Sample, ServerFacts
from bench.server import Ports
from tests.bench.models import tiny
from tests.bench.runs import MODEL

PORTS = Ports(http=1, grpc=2, upstream=3)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return tiny(tmp_path)


def test_service_with_vllm_and_vllm_itself_have_the_same_model_and_limits(model: Model) -> None:
    [own] = fronts.FRONTS["vllm"].server(model).commands(PORTS)
    service, gateway = fronts.FRONTS["chatrpc-vllm"].server(model).commands(PORTS)
    for option in ("--max-num-seqs", "--max-model-len", "--dtype", "--served-model-name"):
        values = {command[list(command).index(option) + 1] for command in (own, service)}
        assert len(values) == 1
    assert str(model.source()) in own
    assert str(model.source()) in service
    assert own[list(own).index("--port") + 1] == gateway[list(gateway).index("--port") + 1] == "1"
    assert service[0] == str(vllm.ENVIRONMENT.python)


def test_service_of_an_upstream_calls_the_server_before_it(model: Model) -> None:
    upstream, service, gateway = fronts.FRONTS["openai-vllm"].server(model).commands(PORTS)
    assert upstream[list(upstream).index("--port") + 1] == "3"
    assert service[list(service).index("--upstream-url") + 1] == "http://127.0.0.1:3/v1"
    assert gateway[list(gateway).index("--upstream") + 1] == "127.0.0.1:2"


def test_loads_have_up_to_128_clients() -> None:
    assert list(of_fronts()) == ["c1", "c8", "c32", "c128"]


def test_costs_are_cpu_seconds_of_all_cores_for_1000_tokens() -> None:
    found = Results(
        started="",
        machine=Machine("", 2, [], 1.0, "", ""),
        model=MODEL,
        loads={"c1": "1 client"},
        servers={"a": ServerFacts("a", "", "", ready_s=12.5, pss_mib=300.0)},
        samples=[
            Sample("a", "c1", i, {"output_tok_s": 100.0}, {"server": share})
            for i, share in enumerate((0.25, 0.5, 0.75))
        ],
    )
    text = io.StringIO()
    Console(file=text, width=100).print(fronts.costs(found))
    assert [cell for cell in text.getvalue().split() if cell[0].isdecimal()][-3:] == [
        "12.5",
        "300",
        "10",  # half of two cores for ten seconds
    ]


@pytest.mark.parametrize("name", ["vllm", "chatrpc-vllm", "openai-vllm", "openai-llama.cpp"])
def test_front_of_ours_has_grpc_too(name: str, model: Model) -> None:
    assert fronts.FRONTS[name].server(model).has_grpc is (name != "vllm")
