"""What holds for every test."""

import os
import signal

from hypothesis import settings

# A shell that starts a job in the background has it ignore SIGINT, and so would every process that
# a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# As the service has it: a test beside others shall not spin away their time. Before torch comes.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# How long an example takes says more of the machine, and of what else runs on it, than of the code.
settings.register_profile("without-deadline", deadline=None)
settings.load_profile("without-deadline")
