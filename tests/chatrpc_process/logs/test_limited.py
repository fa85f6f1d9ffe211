"""Limited log lines: the first of a kind is written, the others are counted."""

import asyncio
import threading
from typing import Any

from chatrpc_process.logs.limited import LimitedLog
from tests.fakes.wait import until

NEVER_S = 3600.0


class Lines:
    """A method of a logger that records its calls."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []

    def __call__(self, event: str, **fields: Any) -> None:
        self.written.append({"event": event, **fields})


def test_first_line_of_a_kind_is_written_at_once() -> None:
    lines, limited = Lines(), LimitedLog(NEVER_S)
    for kind in ("a", "a", "b", "a"):
        limited.write(lines, "rejected", kind=kind, reason=kind)
    assert lines.written == [
        {"event": "rejected", "reason": "a"},
        {"event": "rejected", "reason": "b"},
    ]


def test_events_of_one_kind_are_limited_separately() -> None:
    lines, limited = Lines(), LimitedLog(NEVER_S)
    limited.write(lines, "one", kind="a")
    limited.write(lines, "two", kind="a")
    assert [line["event"] for line in lines.written] == ["one", "two"]


async def test_suppressed_lines_become_one_with_their_number() -> None:
    lines, limited = Lines(), LimitedLog(0.2)
    for number in range(10):
        limited.write(lines, "rejected", kind="a", number=number)
    await until(lambda: sum(line.get("num_suppressed", 1) for line in lines.written) == 10)
    assert lines.written[0] == {"event": "rejected", "number": 0}
    assert lines.written[-1]["number"] == 9
    assert len(lines.written) <= 3


async def test_suppressed_lines_of_a_loop_end_with_it() -> None:
    lines, limited = Lines(), LimitedLog(0.05)

    def run_a_loop() -> None:
        async def write() -> None:
            for _ in range(10):
                limited.write(lines, "rejected", kind="a")

        asyncio.run(write())

    num_threads = threading.active_count()
    await asyncio.to_thread(run_a_loop)
    assert lines.written == [{"event": "rejected"}]
    assert threading.active_count() <= num_threads + 1  # one more thread has run the loop


async def test_line_after_a_quiet_interval_is_written_at_once() -> None:
    lines, limited = Lines(), LimitedLog(0.01)
    limited.write(lines, "rejected", kind="a")
    await until(lambda: not limited._suppressed)
    limited.write(lines, "rejected", kind="a")
    assert lines.written == [{"event": "rejected"}] * 2


async def test_lines_of_several_threads_are_all_counted() -> None:
    lines, limited = Lines(), LimitedLog(0.05)

    def write() -> None:
        for _ in range(500):
            limited.write(lines, "rejected", kind="a")

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    await until(lambda: sum(line.get("num_suppressed", 1) for line in lines.written) == 4000)
    for thread in threads:
        thread.join()
