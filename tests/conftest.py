"""What holds for every test."""

import signal

# A shell that starts a job in the background has it ignore SIGINT, and so would every process that
# a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
