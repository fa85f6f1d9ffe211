"""Engines by name and by import string."""

from importlib.util import find_spec

import pytest

from chatrpc_process.errors import ConfigError
from service.config import ServiceSettings
from service.domain.engine import Engine
from service.domain.engine_settings import Device, EngineSettings
from service.engine.async_engine import AsyncEngine
from service.engines import (
    BACKENDS,
    CHECKS,
    ENGINES,
    auto_engine,
    check_engine,
    load_factory,
    make_engine,
)
from tests.fakes.engine import FakeEngine

SETTINGS = EngineSettings(device="cuda")  # so that no CPU kernels are compiled
FAKE = "tests.fakes.engine:scripted_engine"


def test_local_engine_is_made_by_its_name_and_without_vllm_by_auto() -> None:
    assert isinstance(make_engine("local", SETTINGS), AsyncEngine)
    assert isinstance(make_engine("auto", EngineSettings(device="cpu")), Engine)


@pytest.mark.parametrize("target", [*ENGINES.values(), *CHECKS.values()])
def test_every_function_of_the_tables_can_be_imported(target: str) -> None:
    assert callable(load_factory("", target))


def test_engine_without_its_packages_is_rejected_with_the_command_that_installs_them() -> None:
    if find_spec("vllm") is not None:
        pytest.skip("vLLM is installed")
    for check in (lambda: make_engine("vllm", SETTINGS), lambda: check_engine("vllm", SETTINGS)):
        with pytest.raises(ConfigError) as caught:
            check()
        assert str(caught.value) == (
            "engine=vllm needs the extra chatrpc[vllm], which is not installed: "
            "pip install 'chatrpc[vllm]'"
        )


@pytest.mark.parametrize(
    ("device", "has_vllm", "has_gpu", "expected"),
    [
        ("auto", True, True, "vllm"),
        ("cuda", True, True, "vllm"),
        ("cpu", True, True, "local"),
        ("auto", False, True, "local"),
        ("auto", True, False, "local"),
    ],
)
def test_auto_is_vllm_where_it_is_installed_and_there_is_a_gpu(
    device: Device, expected: str, *, has_vllm: bool, has_gpu: bool
) -> None:
    assert auto_engine(device, has_vllm=has_vllm, has_gpu=has_gpu) == expected


def test_import_string_names_the_factory_of_an_engine() -> None:
    assert isinstance(make_engine(FAKE, SETTINGS), FakeEngine)


@pytest.mark.parametrize("name", ["vlm", "local:", ":engine", "a b:c", "tests.fakes.engine", ""])
def test_unknown_engine_is_rejected_with_the_known_names(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServiceSettings.load(["--engine", name])
    known = ", ".join(["auto", *ENGINES, *BACKENDS])
    assert str(caught.value) == (
        f"engine: There is no engine {name!r}. Use one of {known}, or the import string of an "
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
