import sys

import pytest

from chatrpc_process.interpreter import SWITCH_INTERVAL_S, take_short_turns


def test_switch_interval_is_short() -> None:
    before_s = sys.getswitchinterval()
    try:
        take_short_turns()
        assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)
    finally:
        sys.setswitchinterval(before_s)
