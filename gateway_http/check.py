"""`python -m gateway_http --check`: checks the files that the gateway's options name."""

from collections.abc import Iterable

from chatrpc_process.access.keys import load_secret
from chatrpc_process.check import Findings, check_listener
from chatrpc_process.errors import ConfigError
from chatrpc_process.tls import Validity
from gateway_http.config import Settings
from gateway_http.response_store import check_store
from gateway_http.upstream.connection import read_tls, tls_validities
from gateway_http.upstream.registry import hosted_models, load_registry


def check(settings: Settings) -> Findings:
    """Check every file that the settings and the registry name, and the names of hosted models."""
    findings = check_listener(settings)
    secret, registry, ca = (
        settings.upstream_api_key_file,
        settings.registry,
        settings.upstream_ca,
    )
    if secret is not None:
        findings.attempt(lambda: load_secret(secret))
    if registry is not None:
        findings.attempt(lambda: _check_dates(load_registry(registry).validities))
    findings.attempt(lambda: hosted_models(settings.models))
    if ca is not None:
        certificate, key = settings.upstream_certificate, settings.upstream_key
        findings.attempt(lambda: read_tls(ca, certificate, key))
        findings.attempt(lambda: _check_dates(tls_validities(ca, certificate)))
    store = settings.response_store
    if store is not None:
        findings.attempt(lambda: check_store(store))
    return findings


def _check_dates(validities: Iterable[Validity]) -> None:
    problems = [problem for each in validities if (problem := each.problem())]
    if problems:
        raise ConfigError("; ".join(problems))
