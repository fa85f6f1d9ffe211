"""The store of responses: owners, conversations, limits, and files that cannot be used."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatrpc_process.errors import ConfigError
from gateway_http.response_store import (
    ConversationTooLarge,
    ResponseStore,
    StoredItem,
    StoredResponse,
    StoreError,
    check_store,
)

MAX_BYTES = 1 << 20
MAX_AGE_S = 100.0


class Clock:
    """A clock that tests set."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[ResponseStore]:
    store = ResponseStore(tmp_path / "store.db", MAX_BYTES, MAX_AGE_S, clock)
    yield store
    store.close()


def response(name: str, previous: str | None = None, size: int = 1) -> StoredResponse:
    """Return a response with one item of input and one of output."""
    return StoredResponse(
        name,
        previous,
        name.encode() * size,
        [StoredItem(f"in_{name}", b"i" + name.encode())],
        [StoredItem(f"out_{name}", b"o" + name.encode())],
    )


async def add(store: ResponseStore, stored: StoredResponse, owner: str = "a") -> None:
    await store.add(owner, lambda: stored)


async def test_conversation_has_the_items_of_all_its_responses(store: ResponseStore) -> None:
    for name, previous in (("1", None), ("2", "1"), ("3", "2"), ("other", "1")):
        await add(store, response(name, previous))
    found = await store.conversation("a", "3", MAX_BYTES)
    assert found is not None
    assert [item.id for item in found] == ["in_1", "out_1", "in_2", "out_2", "in_3", "out_3"]
    assert found[1].body == b"o1"
    found = await store.conversation("a", "3", MAX_BYTES, has_output=False)
    assert found is not None
    assert [item.id for item in found][-2:] == ["out_2", "in_3"]
    assert await store.response("a", "other") == b"other"


async def test_owner_finds_only_its_own(store: ResponseStore) -> None:
    await add(store, response("1"))
    await add(store, response("2", "1"), "b")
    assert await store.response("b", "1") is None
    assert await store.conversation("b", "1", MAX_BYTES) is None
    assert await store.conversation("b", "2", MAX_BYTES) is None
    assert await store.items("b", ["in_1", "in_2"], MAX_BYTES) == {"in_2": b"i2"}
    assert not await store.delete("b", "1")
    assert await store.response("a", "1") == b"1"


async def test_deleted_response_is_gone_with_its_items(store: ResponseStore) -> None:
    await add(store, response("1"))
    await add(store, response("2", "1"))
    assert await store.delete("a", "1")
    assert not await store.delete("a", "1")
    assert await store.items("a", ["in_1", "out_2"], MAX_BYTES) == {"out_2": b"o2"}
    assert await store.conversation("a", "2", MAX_BYTES) is None
    assert await store.response("a", "2") == b"2"


async def test_response_expires_unless_its_conversation_continues(
    store: ResponseStore, clock: Clock
) -> None:
    await add(store, response("1"))
    await add(store, response("old"))
    clock.now_s += 60
    await add(store, response("2", "1"))
    clock.now_s += 60
    assert await store.response("a", "old") is None
    assert await store.items("a", ["in_old"], MAX_BYTES) == {}
    assert not await store.delete("a", "old")
    found = await store.conversation("a", "2", MAX_BYTES)
    assert found is not None
    assert len(found) == 4
    clock.now_s += 60
    assert await store.conversation("a", "2", MAX_BYTES) is None


async def test_oldest_responses_are_deleted_if_the_store_is_full(
    store: ResponseStore, clock: Clock, tmp_path: Path
) -> None:
    size = MAX_BYTES // 40
    for number in range(100, 200):
        clock.now_s += 0.1
        await add(store, response(str(number), size=size // 3))
    assert await store.response("a", "100") is None
    assert await store.response("a", "199") is not None
    kept = [n for n in range(100, 200) if await store.response("a", str(n)) is not None]
    assert kept == list(range(kept[0], 200))
    assert len(kept) >= 15
    assert (tmp_path / "store.db").stat().st_size < 2 * MAX_BYTES


async def test_response_larger_than_the_store_is_rejected(store: ResponseStore) -> None:
    await add(store, response("1"))
    with pytest.raises(StoreError, match="exceeds"):
        await add(store, response("2", size=MAX_BYTES))
    assert await store.response("a", "1") == b"1"


async def test_conversation_larger_than_allowed_is_rejected(store: ResponseStore) -> None:
    await add(store, response("1"))
    with pytest.raises(ConversationTooLarge):
        await store.conversation("a", "1", 3)
    assert len(await store.items("a", ["in_1", "out_1"], 4)) == 2
    with pytest.raises(ConversationTooLarge):
        await store.items("a", ["in_1", "out_1"], 3)


async def test_file_is_private_and_keeps_its_content(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = ResponseStore(path, MAX_BYTES, MAX_AGE_S)
    await add(store, response("1"))
    store.close()
    assert path.stat().st_mode & 0o077 == 0
    check_store(path)
    store = ResponseStore(path, MAX_BYTES, MAX_AGE_S)
    assert await store.response("a", "1") == b"1"
    store.close()


async def test_locked_file_is_an_error(store: ResponseStore, tmp_path: Path) -> None:
    await add(store, response("1"))
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        await add(store, response("2"))
    assert await store.response("a", "1") == b"1"
    other.execute("ROLLBACK")
    other.close()
    await add(store, response("2"))


async def test_damaged_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = ResponseStore(path, MAX_BYTES, MAX_AGE_S)
    await add(store, response("1", size=100_000))
    store.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\x5a" * (len(content) - 4096)
    path.write_bytes(bytes(content))
    store = ResponseStore(path, MAX_BYTES, MAX_AGE_S)
    with pytest.raises(StoreError):
        await store.response("a", "1")
    with pytest.raises(StoreError):
        await add(store, response("2"))
    store.close()


def test_file_of_something_else_is_rejected(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("This is no database. " * 100)
    other = tmp_path / "other.db"
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE notes (text)")
    database.close()
    for path in (text, other, tmp_path / "missing" / "store.db", tmp_path):
        with pytest.raises(ConfigError, match="response_store"):
            ResponseStore(path, MAX_BYTES, MAX_AGE_S)
        with pytest.raises(ConfigError, match="response_store"):
            check_store(path)
    check_store(tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.none() | st.integers(0, 9)), max_size=12))
async def test_conversations_follow_their_chains(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int | None]]
) -> None:
    store = ResponseStore(tmp_path_factory.mktemp("s") / "store.db", MAX_BYTES, MAX_AGE_S)
    chains: dict[tuple[str, str], list[str]] = {}
    for number, (owner, previous) in enumerate(steps):
        before = None if previous is None else str(previous)
        if before is not None and (owner, before) not in chains:
            continue
        await add(store, response(str(number), before), owner)
        own = [f"in_{number}", f"out_{number}"]
        chains[owner, str(number)] = (chains[owner, before] if before is not None else []) + own
    for owner in "ab":
        for number in range(len(steps)):
            found = await store.conversation(owner, str(number), MAX_BYTES)
            ids = None if found is None else [item.id for item in found]
            assert ids == chains.get((owner, str(number)))
    store.close()
