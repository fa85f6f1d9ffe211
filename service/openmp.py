"""How long torch's threads wait for work before they sleep. To be set before torch is imported."""

import os

# How often a thread that waits looks for its next piece of work: some 50 us. Between the operators
# of a step lies less. With the default of 300 000, some milliseconds, threads that share their
# cores with another process spend their time waiting for one another: `python -m bench neighbour`.
_SPIN_COUNT = "2000"


def bound_spinning() -> None:
    """Set GOMP_SPINCOUNT for this process, unless the operator has set how threads wait."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
