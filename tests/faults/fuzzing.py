"""How many damaged requests are sent, and what no answer may say. `make fuzz` sends more."""

import os
import re

NUM_CASES = int(os.environ.get("FUZZ_CASES", "1200"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
# The first cases load and cache things that stay.
NUM_WARM_UP = 400
# Words of exceptions, and places in the code.
LEAKS = re.compile(
    r"Traceback|Unexpected <class|Exception|Error:|\.py\b|/site-packages/|0x[0-9a-f]{6}"
)
