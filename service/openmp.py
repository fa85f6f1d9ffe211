"""Sets how long torch's threads wait actively for work. Call it before torch is imported."""

import os

# The number of times that a waiting thread polls for work before it sleeps. 2000 takes about 50 us,
# which is longer than the time between two operators of a step. The default of 300 000 takes some
# milliseconds. With it, threads that share their cores with another process spend their time
# waiting for one another; `python -m bench neighbour` measures this.
_SPIN_COUNT = "2000"


def bound_spinning() -> None:
    """Set GOMP_SPINCOUNT for this process, unless the operator has set how threads wait."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
