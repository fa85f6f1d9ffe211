"""The connections to upstreams: TLS, URLs."""

import ssl
from pathlib import Path

import pytest
import trustme

from chatrpc_process.errors import ConfigError
from service.upstream.client import tls_context
from service.upstream.discovery import find
from service.upstream.failures import AttemptFailed
from service.upstream.runtime import UpstreamRuntime
from service.upstream_url import api_url
from tests.fakes import openai_upstream as fake
from tests.service.upstream.serving import serving, settings
from tests.support import tls_files


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("https://api.test/", "https://api.test/v1"),
        ("https://api.test/openai/v2/", "https://api.test/openai/v2"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
    ],
)
def test_url_has_a_path(url: str, expected: str) -> None:
    assert api_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:8000",
        "ftp://h",
        "http://",
        "http://u:secret@h",
        "http://h?a=1",
        "http://h:x",
        "http://h#a",
    ],
)
def test_invalid_url_is_rejected_without_its_secret(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|Port") as caught:
        api_url(url)
    assert "secret" not in str(caught.value)


def test_proxy_that_cannot_be_used_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(ConfigError, match="proxy of the environment"):
        UpstreamRuntime(settings("http://127.0.0.1:1"))


async def test_certificates_are_verified_and_sent(tmp_path: Path) -> None:
    ca = trustme.CA()
    server = tls_files.issue(ca, tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(server.certificate, server.key)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    authority = tmp_path / "ca.crt"
    ca.cert_pem.write_to_path(authority)
    async with (
        fake.running(tls=context) as upstream,
        serving(
            upstream.url,
            upstream_ca=authority,
            upstream_certificate=server.certificate,
            upstream_key=server.key,
        ) as served,
    ):
        assert await served.text() == "Hi!"


async def test_certificate_of_another_authority_is_rejected(tmp_path: Path) -> None:
    server = tls_files.issue(trustme.CA(), tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(server.certificate, server.key)
    async with fake.running(tls=context) as upstream:
        runtime = UpstreamRuntime(settings(upstream.url))
        [member] = runtime._pool.members
        with pytest.raises(AttemptFailed) as caught:
            await find(member.upstream, None, None)
        await runtime.stop()
    assert "certificate" in str(caught.value.error)


def test_file_that_is_no_certificate_is_an_error_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "ca.crt"
    path.write_text("hi")
    with pytest.raises(ConfigError, match=r"ca\.crt"):
        tls_context(path, None, None)
