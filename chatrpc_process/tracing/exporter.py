"""Makes the tracer of a process from its options."""

from chatrpc_process.errors import ConfigError
from chatrpc_process.tracing.api import OFF, Tracer


def make_tracer(endpoint: str | None, service_name: str) -> Tracer:
    """Return a tracer that exports spans to the collector at `endpoint`.

    If it is None, no spans are recorded.

    Raises:
        ConfigError: The extra `otel` is not installed.
    """
    if endpoint is None:
        return OFF
    try:
        from chatrpc_process.tracing.otel import OtelTracer  # noqa: PLC0415  # an extra, and slow to import
    except ImportError as error:
        raise ConfigError(
            "otlp_endpoint needs the extra chatrpc[otel], which is not installed: "
            f"pip install 'chatrpc[otel]'. {error}"
        ) from None
    return OtelTracer.exporting(endpoint, service_name)
