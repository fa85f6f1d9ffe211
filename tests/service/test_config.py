"""The service's settings."""

import pytest

from chatrpc_process.errors import ConfigError
from service.config import ServiceSettings


def test_int8_on_cuda_is_rejected_in_one_line() -> None:
    with pytest.raises(ConfigError, match="quantization=int8 is served on CPUs only") as caught:
        ServiceSettings.load(["--device", "cuda", "--quantization", "int8"])
    assert "\n" not in str(caught.value)
