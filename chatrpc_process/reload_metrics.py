"""Metrics of watched files and of certificates."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from chatrpc_process.files.watched import Reloaded, Watched
from chatrpc_process.tls import Identity, Validity


class ReloadMetrics(Collector):
    """Collects the state of watched files and the expiry of certificates.

    Args:
        files: The watched files; None for a file that is not configured.
        identity: The server's certificate.
        others: Returns the validity periods of the certificates that this process uses as a client.
    """

    def __init__(
        self,
        *files: Reloaded | None,
        identity: Watched[Identity] | None = None,
        others: Callable[[], Iterable[Validity]] = tuple,
    ) -> None:
        self._files = [file for file in (*files, identity) if file is not None]
        self._identity = identity
        self._others = others

    def collect(self) -> Iterator[GaugeMetricFamily]:
        successful = GaugeMetricFamily(
            "chatrpc_config_last_reload_successful",
            "State of a watched file: 1 if its present content is in use, 0 if an earlier content "
            "is in use because the present one is invalid.",
            labels=["file"],
        )
        loaded_at = GaugeMetricFamily(
            "chatrpc_config_last_reload_success_timestamp_seconds",
            "Time at which the content of a file that is in use was read, in seconds since 1970.",
            labels=["file"],
        )
        not_after = GaugeMetricFamily(
            "chatrpc_tls_certificate_not_after_seconds",
            "Time at which the certificate in use expires, in seconds since 1970. For a file of "
            "several CAs it is the latest of these times.",
            labels=["file"],
        )
        # A file may be used for several purposes. Each path may have only one sample.
        by_path = {path: file for file in self._files for path in file.paths}
        for path, file in by_path.items():
            successful.add_metric([str(path)], float(file.is_current))
            loaded_at.add_metric([str(path)], file.loaded_at_s)
        own = () if self._identity is None else self._identity.value.validities
        for path, validity in {each.path: each for each in (*own, *self._others())}.items():
            not_after.add_metric([str(path)], validity.not_after_s)
        yield from (successful, loaded_at, not_after)
