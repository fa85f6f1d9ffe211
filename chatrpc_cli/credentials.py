"""The API key that commands send to a service."""

import os

# There is no option for the key: all users of a machine can read command lines.
KEY_VARIABLE = "CHATRPC_API_KEY"


def credentials() -> tuple[tuple[str, str], ...]:
    """Return the metadata with the API key; empty if there is no key."""
    key = os.environ.get(KEY_VARIABLE)
    return (("x-api-key", key),) if key else ()
