"""The metadata of calls to services: which request they belong to, and on whose behalf."""

from dataclasses import dataclass, field

from chatrpc.v1 import caller_pb2

Metadata = list[tuple[str, str | bytes]]

CALLER_KEY = "chatrpc-caller-bin"


@dataclass(frozen=True)
class CallMetadata:
    """The metadata of all calls that one request makes.

    Attributes:
        secret: The API key to show: the caller's, or the gateway's own; None: none.
        is_own_secret: Whether `secret` is the gateway's own.
        caller: The caller as the gateway knows it; None: it has no identity.
    """

    request_id: str
    secret: str | None = field(default=None, repr=False)
    is_own_secret: bool = False
    caller: caller_pb2.CallerInfo | None = None

    def with_key(self, own_secret: str | None) -> Metadata:
        """Return the metadata for a service.

        Args:
            own_secret: The gateway's own key for this service, in place of `secret`.
        """
        secret = own_secret or self.secret
        metadata: Metadata = [("x-request-id", self.request_id)]
        if secret is not None:
            metadata.append(("authorization", f"Bearer {secret}"))
        if self.caller is not None:
            info = caller_pb2.CallerInfo()
            info.CopyFrom(self.caller)
            # A service with keys knows the caller by the key that is passed on.
            info.only_without_keys = not (own_secret or self.is_own_secret)
            metadata.append((CALLER_KEY, info.SerializeToString()))
        return metadata
