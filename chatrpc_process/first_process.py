"""Makes SIGTERM and SIGINT end process 1 during its start. Import it before anything else.

For process 1 of a container, Linux ignores signals without a handler. A program sets its handlers
after its imports. So an earlier SIGTERM would be lost, and the container would be killed at the end
of its grace period. In other processes this module does nothing: signals end them by default.
"""

import os
import signal

if os.getpid() == 1:
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda *_: os._exit(0))
