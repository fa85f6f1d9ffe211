"""The key that commands call a service with."""

import os

# From the environment alone: a command line can be read by everybody on the machine.
KEY_VARIABLE = "CHATRPC_API_KEY"


def credentials() -> tuple[tuple[str, str], ...]:
    """What goes along with a call; nothing without a key."""
    key = os.environ.get(KEY_VARIABLE)
    return (("x-api-key", key),) if key else ()
