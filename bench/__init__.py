"""Benchmarks: loads against our own service and against peers, and the report of the results."""

import os

# gRPC logs a warning for each process that is started while its threads run. None uses gRPC.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
