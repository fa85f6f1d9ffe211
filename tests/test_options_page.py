"""docs/options.md and the texts of options."""

import re

import pytest
from pydantic.fields import FieldInfo

from gateway_http.config import Settings as GatewaySettings
from service.config import ServiceSettings
from tests.options_page import PAGE, page

OPTIONS = {
    f"{kind.__name__}.{name}": field
    for kind in (ServiceSettings, GatewaySettings)
    for name, field in kind.model_fields.items()
}


def test_options_page_matches_the_settings() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.options_page"


@pytest.mark.parametrize("field", OPTIONS.values(), ids=OPTIONS)
def test_help_of_each_option_is_sentences(field: FieldInfo) -> None:
    text = field.description or ""
    assert re.fullmatch(r"[A-Z].{15,}\.", text)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name.endswith("_s")])
def test_help_of_each_duration_names_its_unit(name: str) -> None:
    assert "seconds" in (OPTIONS[name].description or "")
