"""Runs a command that does not outlive its parent: `python -m chatrpc_cli.leash PARENT COMMAND...`

The kernel is asked (Linux only) to kill this process when the parent dies, however it dies; the
command then takes this process over, and the request stays in force across `execv`. Popen's
`preexec_fn` would do the same, but runs Python between fork and exec, where a thread of the parent
can leave a lock held for ever.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Become COMMAND, unless PARENT (a pid) is gone already."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # it died before the request was in force
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606  the point of it


if __name__ == "__main__":
    main()
