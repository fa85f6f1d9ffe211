"""How fast it is: loads against our own service and against peers, and the report of them."""

import os

# gRPC would remark on every process that is started beside its threads. None of them uses it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
