"""What holds for every test."""

import os
import signal

# A shell that starts a job in the background has it ignore SIGINT, and so would every process that
# a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# As the service has it: a test beside others shall not spin away their time. Before torch comes.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
