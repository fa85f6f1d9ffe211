"""The choice of connections to close if there are too many."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_http.http.connections import Connections


class Fake:
    """A connection that records that it was closed."""

    def __init__(self) -> None:
        self.is_closed = False

    def close_idle(self) -> None:
        self.is_closed = True


def opened(connections: Connections, *hosts: str) -> list[Fake]:
    fakes = [Fake() for _ in hosts]
    for fake, host in zip(fakes, hosts, strict=True):
        assert connections.add(fake, host)
    return fakes


def test_connection_idle_longest_gives_way() -> None:
    connections = Connections(3)
    first, second, third = opened(connections, "a", "a", "b")
    for fake in (second, third, first):
        connections.note_idle(fake)
    connections.note_idle(second)  # it was idle before
    connections.note_busy(third)
    connections.note_idle(third)
    opened(connections, "c")
    assert [fake.is_closed for fake in (first, second, third)] == [False, True, False]
    opened(connections, "c")
    assert [fake.is_closed for fake in (first, second, third)] == [True, True, False]


def test_without_an_idle_connection_there_is_no_room_until_one_is_removed() -> None:
    connections = Connections(1)
    (busy,) = opened(connections, "a")
    surplus = Fake()
    assert not connections.add(surplus, "b")
    connections.note_idle(surplus)  # it is not counted, so closing it makes no room
    assert not connections.add(Fake(), "b")
    connections.remove(surplus)
    connections.remove(busy)
    opened(connections, "b")
    assert not surplus.is_closed


def test_limit_of_an_address_closes_a_connection_of_that_address() -> None:
    connections = Connections(9, max_per_address=2)
    other, one, two = opened(connections, "b", "a", "a")
    for fake in (other, two, one):
        connections.note_idle(fake)
    opened(connections, "a")
    assert [fake.is_closed for fake in (other, one, two)] == [False, False, True]
    connections.note_busy(one)
    assert not connections.add(Fake(), "a")
    opened(connections, "b")


@pytest.mark.parametrize("per_address", [None, 2])
@given(steps=st.lists(st.tuples(st.sampled_from("+-ib"), st.integers(0, 9)), max_size=60))
def test_limits_hold_whatever_connections_do(
    per_address: int | None, steps: list[tuple[str, int]]
) -> None:
    connections = Connections(4, per_address)
    members: list[tuple[Fake, str]] = []
    for step, i in steps:
        if step == "+":
            fake, host = Fake(), "abc"[i % 3]
            if connections.add(fake, host):
                members.append((fake, host))
        elif members:
            fake = members[i % len(members)][0]
            if step == "-":
                connections.remove(fake)
                fake.is_closed = True
            elif step == "i":
                connections.note_idle(fake)
            else:
                connections.note_busy(fake)
        members = [(fake, host) for fake, host in members if not fake.is_closed]
        assert len(members) <= 4
        hosts = [host for _, host in members]
        assert per_address is None or all(hosts.count(host) <= per_address for host in "abc")
