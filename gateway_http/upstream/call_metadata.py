"""The metadata of calls to services: the request's id, its API key and its caller."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from chatrpc.v1 import caller_pb2
from chatrpc_process.access.secret import sent_secret
from gateway_http.upstream.affinity import SESSION_HEADER

Metadata = list[tuple[str, str | bytes]]

CALLER_KEY = "chatrpc-caller-bin"

# The values that are passed on: metadata allows only these characters, and we limit the length.
_PRINTABLE = re.compile(r"[\x20-\x7e]{1,1024}")


@dataclass(frozen=True)
class CallMetadata:
    """The metadata of all calls that one HTTP request makes.

    Attributes:
        secret: The API key to send: the caller's or the gateway's own. None if no key is sent.
        is_own_secret: True if `secret` is the gateway's own.
        caller: The caller's identity in the gateway; None if it has none.
        session_id: The session that the request's header names; "" for none.
    """

    request_id: str
    secret: str | None = field(default=None, repr=False)
    is_own_secret: bool = False
    caller: caller_pb2.CallerInfo | None = None
    session_id: str = ""

    @classmethod
    def of_request(
        cls,
        headers: Mapping[str, str],
        request_id: str,
        caller: caller_pb2.CallerInfo | None,
        own_secret: str | None,
    ) -> "CallMetadata":
        """Return the metadata for an HTTP request.

        Args:
            headers: The headers of the HTTP request, with names in lower case.
            request_id: The request's id.
            caller: The caller's identity in the gateway; None if it has none.
            own_secret: The gateway's own key, sent instead of the caller's; None if it has none.
        """
        return cls(
            request_id,
            secret=_sendable_secret(headers) if own_secret is None else own_secret,
            is_own_secret=own_secret is not None,
            caller=caller,
            session_id=headers.get(SESSION_HEADER, ""),
        )

    def with_key(self, own_secret: str | None) -> Metadata:
        """Return the metadata for a service.

        Args:
            own_secret: The gateway's own key for this service, sent instead of `secret`.
        """
        secret = own_secret or self.secret
        metadata: Metadata = [("x-request-id", self.request_id)]
        if secret is not None:
            metadata.append(("authorization", f"Bearer {secret}"))
        if self.caller is not None:
            info = caller_pb2.CallerInfo()
            info.CopyFrom(self.caller)
            # A service with keys identifies the caller by the key that is passed on.
            info.only_without_keys = not (own_secret or self.is_own_secret)
            metadata.append((CALLER_KEY, info.SerializeToString()))
        return metadata


def _sendable_secret(headers: Mapping[str, str]) -> str | None:
    """Return the caller's key for the service, or None if metadata cannot contain it.

    If there are several keys, it is the one that the gateway itself checks. So the gateway and the
    service identify the same caller.
    """
    secret = sent_secret(headers.items())
    return secret if secret and _PRINTABLE.fullmatch(secret) else None
