import json
from collections.abc import Callable

from typer.testing import Result

from tests.chatrpc_cli.fake_service import FakeService


def test_table_has_a_row_for_each_model_of_every_page(run: Callable[..., Result]) -> None:
    _, head, _, tiny, large, *_ = run("models").stdout.splitlines()
    assert head.split() == ["model", "engine", "context", "aliases", "weights"]
    assert tiny.split() == ["tiny", "local", "2,048", "t,", "[bold]", "org/tiny"]
    assert large.split() == ["large", "131,072"]


def test_json_has_every_field_under_its_proto_name(run: Callable[..., Result]) -> None:
    tiny, large = json.loads(run("models", "--json").stdout)
    assert tiny["id"] == "tiny"
    assert tiny["max_model_len"] == 2048
    assert large["aliases"] == []


def test_service_without_models_gives_an_empty_table(
    service: FakeService, run: Callable[..., Result]
) -> None:
    service.models.served = []
    assert json.loads(run("models", "--json").stdout) == []
