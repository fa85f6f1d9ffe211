"""The service's settings."""

from pathlib import Path

import pytest

from chatrpc_process.errors import ConfigError
from service.config import ServiceSettings


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_quantization_on_cuda_is_rejected_in_one_line(method: str) -> None:
    with pytest.raises(
        ConfigError, match=f"quantization={method} is served on CPUs only"
    ) as caught:
        ServiceSettings.load(["--device", "cuda", "--quantization", method])
    assert "\n" not in str(caught.value)


def test_int8_cache_on_cuda_is_rejected() -> None:
    with pytest.raises(ConfigError, match="kv_cache_dtype=int8 is served on CPUs only"):
        ServiceSettings.load(["--device", "cuda", "--kv-cache-dtype", "int8"])


def test_size_of_the_cache_is_set_by_one_option() -> None:
    options = ["--gpu-memory-utilization", "0.5", "--kv-cache-memory-bytes", "1GiB"]
    with pytest.raises(ConfigError, match="both set the size of the KV cache"):
        ServiceSettings.load(options)
    for value in ("0", "1.1"):
        with pytest.raises(ConfigError, match="gpu_memory_utilization"):
            ServiceSettings.load(["--gpu-memory-utilization", value])


def test_prefix_cache_on_disk_needs_what_it_depends_on() -> None:
    with pytest.raises(ConfigError, match="prefix_cache_dir needs prefix_caching"):
        ServiceSettings.load(["--prefix-cache-dir", "/cache", "--no-prefix-caching"])
    with pytest.raises(ConfigError, match="prefix_cache_disk_bytes needs prefix_cache_dir"):
        ServiceSettings.load(["--prefix-cache-disk-bytes", "20GiB"])
    settings = ServiceSettings.load(
        ["--prefix-cache-dir", "/cache", "--prefix-cache-disk-bytes", "20GiB"]
    ).engine_settings
    assert settings.prefix_cache_dir == Path("/cache")
    assert settings.prefix_cache_disk_bytes == 20 * 2**30
