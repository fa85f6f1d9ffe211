"""A server's certificate, its key, and whose certificates it asks for, in files."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatrpc_process.settings import ConfigError
from chatrpc_process.small_file import read_small
from chatrpc_process.watched import Watched


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. With `client_ca`, callers need a certificate that it has signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(p for p in (self.certificate, self.key, self.client_ca) if p is not None)

    def read(self) -> "Identity":
        """What is in the files.

        Raises:
            ConfigError: one of them cannot be read, or is no PEM file, or the key is another's.
        """
        contents = self._contents()
        self.context()  # of two files that change one after the other, a pair is needed
        if self._contents() != contents:  # and they may have changed between the two readings
            raise ConfigError(f"{', '.join(map(str, self.paths))}: they are being written.")
        return Identity(contents[1], contents[0], contents[2] if self.client_ca else None)

    def _contents(self) -> list[bytes]:
        contents = [read_small(path) for path in self.paths]
        for path, content in zip(self.paths, contents, strict=True):
            if b"-----BEGIN " not in content:
                raise ConfigError(f"{path}: this is no PEM file.")
        return contents

    def context(self) -> ssl.SSLContext:
        """What is in the files, for a server of Python's.

        Raises:
            ConfigError: as `read`, or the key has a passphrase.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A session resumed is asked for no certificate, and is shown none that is new.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        context.set_alpn_protocols(["http/1.1"])
        try:
            # Without a passphrase at hand OpenSSL would ask the terminal for one, and wait.
            context.load_cert_chain(self.certificate, self.key, password="")
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(f"{', '.join(map(str, self.paths))}: {error}") from None
        return context


def following_context(
    files: TlsFiles, on_failed_handshake: Callable[[ssl.SSLError], object] = lambda _: None
) -> ssl.SSLContext:
    """A context that follows the files: each connection is under what they hold when it comes.

    Servers of asyncio and uvloop close a connection whose handshake fails without a word; here
    `on_failed_handshake` is called with the error first.

    Raises:
        ConfigError: they cannot be read at first.
    """

    def read() -> ssl.SSLContext:
        files.read()  # for its words
        context = files.context()
        context.sslobject_class = ReportedConnection
        return context

    class ReportedConnection(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                on_failed_handshake(error)
                raise

    return _Following(ssl.PROTOCOL_TLS_SERVER, Watched(read, *files.paths))


class _Following(ssl.SSLContext):
    """Has servers of asyncio and uvloop wrap each connection in the context of the day.

    Not by `sni_callback`: sessions are looked for in the context that a connection begins with, so
    one that is resumed would be known by the certificates of an earlier day.
    """

    def __init__(self, _protocol: int, watched: Watched[ssl.SSLContext]) -> None:
        self._watched = watched

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        self._watched.refresh()
        return self._watched.value.wrap_bio(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a server shows, and whose callers it takes."""

    key: bytes
    certificate: bytes
    client_ca: bytes | None
