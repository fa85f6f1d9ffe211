"""Runs a command that ends with its parent: `python -m chatrpc_process.leash PARENT COMMAND...`

On Linux, the kernel kills this process when the parent ends for any reason. The command then
replaces this process; the setting stays in force across `execv`. Popen's `preexec_fn` could do the
same, but it runs Python between fork and exec. There it can wait forever for a lock that another
thread held at the fork.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Become COMMAND, unless the process with the id PARENT has ended already."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # the parent ended before the setting was in force
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606  the purpose of this module


if __name__ == "__main__":
    main()
