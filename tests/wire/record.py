"""Write the recordings: all of them, or those named as arguments of `python -m tests.wire.record`.

A name is for example `http/chat_whole`. Recordings without a request are removed. Read `git diff`
before you commit: each difference is a change that clients see.
"""

import asyncio
import sys

from tests.wire.recordings import REQUESTS, record, recorded_names, remove, response


async def main(names: list[str]) -> None:
    for name in recorded_names() - REQUESTS.keys():
        remove(name)
    for name in names or REQUESTS:
        record(name, await response(REQUESTS[name]))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
