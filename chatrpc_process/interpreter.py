"""The switch interval of the interpreter's threads."""

import sys

# A thread that waits for the interpreter's lock gets it after this time. The default, 5 ms, is as
# long as a whole step of a small model. The engine takes the lock again after each operator, and
# the event loop after each wait. Any other busy thread could delay each of these by that time.
SWITCH_INTERVAL_S = 0.0001


def take_short_turns() -> None:
    """Limit the time for which a thread keeps the interpreter's lock to SWITCH_INTERVAL_S."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
