"""Engines by name and by import string."""

import pytest

from chatrpc_process.errors import ConfigError
from service.config import ServiceSettings
from service.domain.engine import Engine
from service.domain.engine_settings import EngineSettings
from service.engine.async_engine import AsyncEngine
from service.engines import ENGINES, load_engine_factory, make_engine
from tests.fakes.engine import FakeEngine

SETTINGS = EngineSettings(device="cuda")  # so that no CPU kernels are compiled
FAKE = "tests.fakes.engine:scripted_engine"


@pytest.mark.parametrize("name", ["auto", "local"])
def test_local_engine_is_made_by_its_name_and_by_auto(name: str) -> None:
    engine = make_engine(name, SETTINGS)
    assert isinstance(engine, AsyncEngine)
    assert isinstance(engine, Engine)


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_of_the_table_can_be_imported(name: str) -> None:
    assert callable(load_engine_factory(name))


def test_import_string_names_the_factory_of_an_engine() -> None:
    assert isinstance(make_engine(FAKE, SETTINGS), FakeEngine)


@pytest.mark.parametrize("name", ["vllm", "local:", ":engine", "a b:c", "tests.fakes.engine", ""])
def test_unknown_engine_is_rejected_with_the_known_names(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServiceSettings.load(["--engine", name])
    assert str(caught.value) == (
        f"engine: There is no engine {name!r}. Use one of auto, local, or the import string of an "
        "engine factory, such as my_package.engine:make_engine."
    )


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("no_such_package.engine:make", "the module no_such_package.engine cannot be imported"),
        ("tests.fakes.engine:no_such", "the module tests.fakes.engine has no attribute no_such."),
        ("tests.fakes.engine:FakeEngine.no_such", "has no attribute FakeEngine.no_such."),
        ("service.engines:ENGINES", "service.engines:ENGINES is not an engine factory: it is not"),
        ("tests.fakes.engine:FakeEngine", "it cannot be called with one argument"),
        ("builtins:repr", "the factory returned str, which is not an engine"),
    ],
)
def test_import_string_of_something_else_is_rejected_with_the_reason(
    name: str, complaint: str
) -> None:
    settings = ServiceSettings.load(["--engine", name])
    with pytest.raises(ConfigError, match=f"^engine={name}: ") as caught:
        make_engine(settings.engine, settings.engine_settings)
    assert complaint in str(caught.value)


def test_engine_settings_have_the_defaults_of_the_service() -> None:
    assert ServiceSettings.load([]).engine_settings == EngineSettings()


def test_speculation_none_disables_drafts() -> None:
    settings = ServiceSettings.load(["--speculation", "none", "--num-speculative-tokens", "4"])
    assert settings.engine_settings.num_speculative_tokens == 0


def test_speculation_ngram_enables_drafts_on_every_device() -> None:
    settings = ServiceSettings.load(["--speculation", "ngram"])
    assert settings.engine_settings.num_speculative_tokens == 8
    settings = ServiceSettings.load(["--num-speculative-tokens", "4"])
    assert settings.engine_settings.num_speculative_tokens == 4
