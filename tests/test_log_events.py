"""Names of log events are constants that an alert can search for."""

import re

from tests.support.log_events import log_events


def test_events_are_snake_case_constants() -> None:
    events = list(log_events())
    assert len(events) > 20
    for event in events:
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", event.name), event
