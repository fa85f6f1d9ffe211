"""The metadata of calls to services."""

import pytest

from chatrpc.v1 import caller_pb2
from gateway_http.upstream.call_metadata import CALLER_KEY, CallMetadata

INFO = caller_pb2.CallerInfo(name="shop", weight=2)


@pytest.mark.parametrize(
    ("secret", "is_own", "of_service", "shown", "only_without_keys"),
    [
        ("sk-caller", False, None, "Bearer sk-caller", True),
        ("sk-own", True, None, "Bearer sk-own", False),
        ("sk-caller", False, "sk-service", "Bearer sk-service", False),
        ("sk-own", True, "sk-service", "Bearer sk-service", False),
        (None, False, None, None, True),
    ],
)
def test_caller_is_named_as_the_key_beside_it_permits(
    secret: str | None,
    is_own: bool,
    of_service: str | None,
    shown: str | None,
    only_without_keys: bool,
) -> None:
    metadata = dict(CallMetadata("id", secret, is_own, INFO).with_key(of_service))
    assert metadata.get("authorization") == shown
    sent = metadata[CALLER_KEY]
    assert isinstance(sent, bytes)
    info = caller_pb2.CallerInfo.FromString(sent)
    assert (info.name, info.weight, info.only_without_keys) == ("shop", 2, only_without_keys)
    assert not INFO.only_without_keys


def test_caller_without_an_identity_is_not_named() -> None:
    assert dict(CallMetadata("id").with_key(None)) == {"x-request-id": "id"}


def test_secret_is_not_shown_by_its_representation() -> None:
    assert "sk-caller" not in repr(CallMetadata("id", "sk-caller"))
