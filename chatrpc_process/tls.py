"""The files of a server's certificate, of its key and of the CA of its clients."""

import _ssl
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from chatrpc_process.errors import ConfigError
from chatrpc_process.files.small_file import read_small
from chatrpc_process.files.watched import Watched

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Validity:
    """The validity period of the certificate in a file, in seconds since 1970."""

    path: Path
    not_before_s: float
    not_after_s: float

    def problem(self) -> str | None:
        """Return why the certificate is not valid now, or None if it is valid."""
        now_s = time.time()
        if now_s > self.not_after_s:
            return f"{self.path}: the certificate expired on {_date(self.not_after_s)}"
        if now_s < self.not_before_s:
            return f"{self.path}: the certificate is not valid before {_date(self.not_before_s)}"
        return None


@dataclass(frozen=True, slots=True)
class Identity:
    """The content of a server's TLS files, and a context of Python's `ssl` made from it."""

    key: bytes = field(repr=False)
    certificate: bytes
    client_ca: bytes | None
    context: ssl.SSLContext
    validities: tuple[Validity, ...]

    def problem(self) -> str | None:
        """Return why a certificate is not valid now, or None if all are valid."""
        problems = (each.problem() for each in self.validities)
        return next((problem for problem in problems if problem), None)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The PEM files of a server. With `client_ca`, clients need a certificate signed by it."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The paths of all files that are not None."""
        return tuple(p for p in (self.certificate, self.key, self.client_ca) if p is not None)

    def read(self) -> Identity:
        """Read the files. The dates of the certificates are not checked.

        Raises:
            ConfigError: A file cannot be read or is not PEM, or the key belongs to another
                certificate or has a passphrase.
        """
        contents = self._contents()
        context = self._context()
        validities = tuple(self._validities())
        if self._contents() != contents:  # a file has changed between two readings of it
            raise ConfigError(f"{', '.join(map(str, self.paths))}: the files are being written.")
        client_ca = contents[2] if self.client_ca else None
        return Identity(contents[1], contents[0], client_ca, context, validities)

    def _contents(self) -> list[bytes]:
        contents = [read_small(path) for path in self.paths]
        for path, content in zip(self.paths, contents, strict=True):
            if b"-----BEGIN " not in content:
                raise ConfigError(f"{path}: this is not a PEM file.")
        return contents

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # In a resumed session, the server would not check the client's certificate, and the client
        # would not see a new certificate of the server.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        context.set_alpn_protocols(["http/1.1"])
        try:
            # Without this argument, OpenSSL would ask for a passphrase at the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:  # ssl.SSLError is a subclass
            raise ConfigError(f"{', '.join(map(str, self.paths))}: {error}") from None
        return context

    def _validities(self) -> Iterator[Validity]:
        yield certificate_validity(self.certificate)
        if self.client_ca is not None:
            yield ca_validity(self.client_ca)


def certificate_validity(path: Path) -> Validity:
    """Return the validity period of the first certificate of a PEM file.

    Raises:
        ConfigError: There is no certificate.
    """
    try:
        # `ssl` has a public function only for certificates of peers. This private function has been
        # in every CPython since 2.6. Parsing ASN.1 here would be worse.
        decoded = _ssl._test_decode_cert(path)  # type: ignore[attr-defined]  # not in the stubs
    except OSError as error:
        raise ConfigError(f"{path}: {getattr(error, 'reason', None) or error}") from None
    return _validity(path, [decoded])


def ca_validity(path: Path) -> Validity:
    """Return the validity period of the CA that expires last, of those in a PEM file.

    Raises:
        ConfigError: There is no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(path)
    except OSError as error:
        raise ConfigError(f"{path}: {getattr(error, 'reason', None) or error}") from None
    found = context.get_ca_certs()
    # If the file has no CA, its certificate is trusted directly.
    return _validity(path, found) if found else certificate_validity(path)


def watch_tls(files: TlsFiles) -> Watched[Identity]:
    """Watch a server's TLS files.

    Certificates that have expired or are not valid yet do not replace valid ones. They are checked
    again at each refresh. If there are no valid ones, they are used and an error is logged: the
    clock of a machine may be wrong when it starts.

    Raises:
        ConfigError: The files cannot be read at first.
    """
    current: Identity | None = None

    def read() -> Identity:
        nonlocal current
        identity = files.read()
        problem = identity.problem()
        if problem is not None:
            if current is not None and current.problem() is None:
                raise ConfigError(problem)
            log.error("certificate_not_valid", reason=problem)
        current = identity
        return identity

    return Watched(read, *files.paths)


def watched_context(
    watched: Watched[Identity],
    on_failed_handshake: Callable[[ssl.SSLError], object] = lambda _: None,
) -> ssl.SSLContext:
    """Return a context for servers that uses the newest certificates for each new connection.

    If a handshake fails, servers of asyncio and uvloop close the connection silently. This context
    calls `on_failed_handshake` with the error first.
    """

    class ReportedConnection(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                on_failed_handshake(error)
                raise

    return _WatchedContext(ssl.PROTOCOL_TLS_SERVER, watched, ReportedConnection)


class _WatchedContext(ssl.SSLContext):
    """A TLS context for servers of asyncio and uvloop that always use the newest files.

    It wraps each connection in the context that was made from the newest files.

    `sni_callback` is not sufficient. Sessions are looked up in the context with which a connection
    begins, so a resumed session would use earlier certificates.
    """

    def __init__(
        self, _protocol: int, watched: Watched[Identity], connection: type[ssl.SSLObject]
    ) -> None:
        self._watched = watched
        self._connection = connection

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        self._watched.refresh()
        context = self._watched.value.context
        context.sslobject_class = self._connection
        return context.wrap_bio(*args, **kwargs)


def _validity(path: Path, certificates: list[Any]) -> Validity:
    """Return the validity period of the certificate that expires last."""
    last = max(certificates, key=lambda each: ssl.cert_time_to_seconds(each["notAfter"]))
    return Validity(
        path,
        ssl.cert_time_to_seconds(last["notBefore"]),
        ssl.cert_time_to_seconds(last["notAfter"]),
    )


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
