"""The service's settings and what the README says of them."""

import re
from pathlib import Path

import pytest

from chatrpc_process.errors import ConfigError
from service.config import ServiceSettings

README = (Path(__file__).parent.parent.parent / "README.md").read_text()


def test_every_setting_has_a_row_in_the_table() -> None:
    table = README.split("The service, `python -m service`")[1].split("The gateway,")[0]
    options = {
        option.removeprefix("no-").replace("-", "_")
        for row in table.splitlines()
        if row.startswith("| `--")
        for option in re.findall(r"`--([a-z-]+)`", row.split("|")[1])
    }
    assert options == set(ServiceSettings.model_fields) - {"config"}


def test_int8_on_cuda_is_rejected_in_one_line() -> None:
    with pytest.raises(ConfigError, match="quantization=int8 is served on CPUs only") as caught:
        ServiceSettings.load(["--device", "cuda", "--quantization", "int8"])
    assert "\n" not in str(caught.value)
