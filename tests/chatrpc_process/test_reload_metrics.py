"""Metrics of watched files and certificates."""

from pathlib import Path

import trustme
from prometheus_client import CollectorRegistry

from chatrpc_process.access.keys import load_keys
from chatrpc_process.files.watched import Watched
from chatrpc_process.reload_metrics import ReloadMetrics
from chatrpc_process.tls import watch_tls
from tests.support.api_keys import key, write
from tests.support.tls_files import issue

SUCCESSFUL = "chatrpc_config_last_reload_successful"
LOADED_AT = "chatrpc_config_last_reload_success_timestamp_seconds"
NOT_AFTER = "chatrpc_tls_certificate_not_after_seconds"


def value(registry: CollectorRegistry, name: str, path: Path) -> float | None:
    return registry.get_sample_value(name, {"file": str(path)})


def test_failed_reload_is_seen_until_the_file_is_valid_again(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", key())
    watched = Watched(lambda: load_keys(path), path)
    registry = CollectorRegistry()
    registry.register(ReloadMetrics(watched, None))
    assert value(registry, SUCCESSFUL, path) == 1
    loaded_at_s = value(registry, LOADED_AT, path)
    assert loaded_at_s
    write(path, key() + key())  # one name twice
    watched.refresh()
    assert value(registry, SUCCESSFUL, path) == 0
    assert value(registry, LOADED_AT, path) == loaded_at_s
    write(path, key())
    watched.refresh()
    assert value(registry, SUCCESSFUL, path) == 1
    assert (value(registry, LOADED_AT, path) or 0) >= loaded_at_s


def test_expiry_of_a_certificate_is_exported(tmp_path: Path) -> None:
    files = issue(trustme.CA(), tmp_path)
    identity = watch_tls(files)
    registry = CollectorRegistry()
    registry.register(ReloadMetrics(identity=identity))
    [validity] = identity.value.validities
    assert value(registry, NOT_AFTER, files.certificate) == validity.not_after_s
    assert value(registry, SUCCESSFUL, files.certificate) == 1
    assert value(registry, SUCCESSFUL, files.key) == 1
    assert value(registry, NOT_AFTER, files.key) is None


def test_metrics_without_files_have_no_samples() -> None:
    registry = CollectorRegistry()
    registry.register(ReloadMetrics(None))
    assert [sample for metric in registry.collect() for sample in metric.samples] == []
