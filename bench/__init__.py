"""Benchmarks: loads against our own service and against peers, and the report of the results."""

import os

# Without this, gRPC logs a warning for each process that is started while its threads run. The
# processes do not use the gRPC of this one.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
