"""How the threads of a process take turns in the interpreter."""

import sys

# A thread that waits for the interpreter's lock gets it after so long. The default, 5 ms, is as
# long as a whole step of a small model: the engine takes the lock anew after each operator, the
# event loop after each wait, and whoever computes meanwhile would keep each of them that long.
SWITCH_INTERVAL_S = 0.0001


def take_short_turns() -> None:
    """Let every thread have the interpreter for at most SWITCH_INTERVAL_S while others wait."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
