"""To be imported before anything else: as a container's first process, end when told to.

Linux lets process 1 ignore each signal that it has no handler for. A program sets its own when it
has imported everything; a SIGTERM that came before would be lost, and the container be killed at
the end of its grace. Other processes need nothing: the default ends them.
"""

import os
import signal

if os.getpid() == 1:
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda *_: os._exit(0))
