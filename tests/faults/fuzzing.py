"""The number of damaged requests, and texts that no response may contain.

`make fuzz` sends more requests.
"""

import os
import re

NUM_CASES = int(os.environ.get("FUZZ_CASES", "1200"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
# The first cases fill caches that stay, so memory is measured after them.
NUM_WARM_UP = 400
# Texts of exceptions, and paths of source files.
LEAKS = re.compile(
    r"Traceback|Unexpected <class|Exception|Error:|\.py\b|/site-packages/|0x[0-9a-f]{6}"
)
