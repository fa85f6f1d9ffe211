"""The store of responses: a SQLite file with limits of age and size.

Every response belongs to an owner, who cannot find those of others. It has the items of its own
input and its output. The items before them are those of the previous response.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from chatrpc_process.errors import ConfigError

_Result = TypeVar("_Result")

_VERSION = 1
_SCHEMA = f"""
CREATE TABLE responses (
    owner TEXT NOT NULL,
    id TEXT NOT NULL,
    previous_id TEXT,
    used_s REAL NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (owner, id)
);
CREATE INDEX responses_by_use ON responses (used_s);
CREATE TABLE items (
    owner TEXT NOT NULL,
    response_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    is_output INTEGER NOT NULL,
    id TEXT NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (owner, response_id, position),
    FOREIGN KEY (owner, response_id) REFERENCES responses (owner, id) ON DELETE CASCADE
);
CREATE INDEX items_by_id ON items (owner, id);
PRAGMA user_version = {_VERSION};
"""
# The responses of a conversation from the last one to the first.
_CHAIN = """
WITH RECURSIVE chain (id, previous_id, depth) AS (
    SELECT id, previous_id, 0 FROM responses
    WHERE owner = :owner AND id = :id AND used_s >= :oldest_s
    UNION ALL
    SELECT responses.id, responses.previous_id, depth + 1 FROM responses
    JOIN chain ON responses.id = chain.previous_id
    WHERE responses.owner = :owner AND used_s >= :oldest_s AND depth < 10000
)
"""
_USE = f"""{_CHAIN}
UPDATE responses SET used_s = :now_s WHERE owner = :owner AND id IN (SELECT id FROM chain)
"""  # noqa: S608  # only constants
_PREVIOUS_IDS = f"{_CHAIN} SELECT previous_id FROM chain ORDER BY depth"  # noqa: S608
_ITEMS = f"""{_CHAIN}
SELECT items.id, items.body FROM chain
JOIN items ON items.owner = :owner AND items.response_id = chain.id
WHERE depth > 0 OR is_output <= :has_output ORDER BY depth DESC, position
"""  # noqa: S608
_BUSY_TIMEOUT_S = 2.0
_TIMEOUT_S = 5.0
_MAX_JOBS = 256
_NUM_EVICTED = 16


class StoreError(Exception):
    """The store cannot do it now. The text is the reason, for the log."""


class ConversationTooLarge(Exception):
    """The items of a conversation exceed the size that was allowed."""


@dataclass(frozen=True)
class StoredItem:
    """An item of a response, as JSON."""

    id: str
    body: bytes


@dataclass(frozen=True)
class StoredResponse:
    """A response, as JSON, with its own items.

    Attributes:
        previous_id: The id of the response that it follows, if there is one.
    """

    id: str
    previous_id: str | None
    body: bytes
    input: Sequence[StoredItem]
    output: Sequence[StoredItem]


class ResponseStore:
    """A store. Its methods run on a thread of its own. They raise StoreError.

    A response expires if neither it nor a response that continues its conversation has been stored
    for `max_age_s` seconds. If the content exceeds `max_bytes`, the responses that were used
    longest ago are deleted.

    Args:
        path: The SQLite file. It is created if it does not exist.
        max_bytes: The maximum size of the content, in bytes.
        max_age_s: The maximum age of a response, in seconds.
        clock: Returns the time in seconds since 1970.

    Raises:
        ConfigError: The file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        max_age_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._num_jobs = 0
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # it has conversations
            self._database = _opened(path)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"response_store: {path} cannot be used: {error}") from error
        self._thread = ThreadPoolExecutor(1, "response-store")

    def close(self) -> None:
        """Finish the jobs that have begun, and close the file."""
        self._thread.shutdown(cancel_futures=True)
        self._database.close()

    async def add(self, owner: str, make: Callable[[], StoredResponse]) -> None:
        """Store the response that `make`, called on the thread, returns."""
        await self._run(lambda: self._add(owner, make()))

    async def response(self, owner: str, response_id: str) -> bytes | None:
        """Return a response as JSON; None if the owner has no such response."""
        return await self._run(lambda: self._response(owner, response_id))

    async def delete(self, owner: str, response_id: str) -> bool:
        """Delete a response. Return False if the owner has no such response."""
        return await self._run(lambda: self._delete(owner, response_id))

    async def conversation(
        self, owner: str, response_id: str, max_bytes: int, *, has_output: bool = True
    ) -> list[StoredItem] | None:
        """Return the items up to a response in their order.

        Args:
            owner: The owner.
            response_id: The response.
            max_bytes: The maximum size of the items together, in bytes.
            has_output: False to leave out the output of the response itself.

        Returns:
            The items; None if the owner has no such response, or not all before it.

        Raises:
            ConversationTooLarge: The items exceed `max_bytes`.
        """
        return await self._run(
            lambda: self._conversation(owner, response_id, max_bytes, has_output=has_output)
        )

    async def items(self, owner: str, ids: Sequence[str], max_bytes: int) -> dict[str, bytes]:
        """Return those items of these ids that the owner has, by id.

        Raises:
            ConversationTooLarge: The items together exceed `max_bytes`.
        """
        return await self._run(lambda: self._items(owner, ids, max_bytes))

    async def _run(self, job: Callable[[], _Result]) -> _Result:
        if self._num_jobs >= _MAX_JOBS:
            raise StoreError("too many jobs are waiting")
        self._num_jobs += 1
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await asyncio.get_running_loop().run_in_executor(self._thread, job)
        except TimeoutError:
            raise StoreError(f"it did not respond within {_TIMEOUT_S:g} s") from None
        except sqlite3.Error as error:
            raise StoreError(str(error)) from error
        finally:
            self._num_jobs -= 1

    @property
    def _oldest_s(self) -> float:
        return self._clock() - self._max_age_s

    def _add(self, owner: str, stored: StoredResponse) -> None:
        now_s = self._clock()
        size = len(stored.body) + sum(len(each.body) for each in (*stored.input, *stored.output))
        if size > self._max_bytes:
            raise StoreError(f"a response of {size} bytes exceeds its size")
        with _transaction(self._database) as database:
            database.execute("DELETE FROM responses WHERE used_s < ?", (self._oldest_s,))
            database.execute(
                _USE,
                {
                    "owner": owner,
                    "id": stored.previous_id,
                    "now_s": now_s,
                    "oldest_s": self._oldest_s,
                },
            )
            database.execute(
                "INSERT INTO responses VALUES (?, ?, ?, ?, ?)",
                (owner, stored.id, stored.previous_id, now_s, stored.body),
            )
            rows = [(False, each) for each in stored.input]
            rows += [(True, each) for each in stored.output]
            database.executemany(
                "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (owner, stored.id, position, is_output, each.id, each.body)
                    for position, (is_output, each) in enumerate(rows)
                ],
            )
            while self._num_bytes() > self._max_bytes and self._evict(stored.id):
                pass

    def _num_bytes(self) -> int:
        """Return the size of the pages of the file that have content."""
        (size,) = self._database.execute("PRAGMA page_size").fetchone()
        (num_pages,) = self._database.execute("PRAGMA page_count").fetchone()
        (num_free,) = self._database.execute("PRAGMA freelist_count").fetchone()
        return int(size) * (int(num_pages) - int(num_free))

    def _evict(self, kept_id: str) -> bool:
        """Delete the responses that were used longest ago. Return False if there is no other."""
        deleted = self._database.execute(
            "DELETE FROM responses WHERE rowid IN "
            "(SELECT rowid FROM responses WHERE id != ? ORDER BY used_s, rowid LIMIT ?)",
            (kept_id, _NUM_EVICTED),
        )
        return deleted.rowcount > 0

    def _response(self, owner: str, response_id: str) -> bytes | None:
        row = self._database.execute(
            "SELECT body FROM responses WHERE owner = ? AND id = ? AND used_s >= ?",
            (owner, response_id, self._oldest_s),
        ).fetchone()
        return None if row is None else bytes(row[0])

    def _delete(self, owner: str, response_id: str) -> bool:
        with _transaction(self._database) as database:
            deleted = database.execute(
                "DELETE FROM responses WHERE owner = ? AND id = ? AND used_s >= ?",
                (owner, response_id, self._oldest_s),
            )
            return deleted.rowcount > 0

    def _conversation(
        self, owner: str, response_id: str, max_bytes: int, *, has_output: bool
    ) -> list[StoredItem] | None:
        values = {"owner": owner, "id": response_id, "oldest_s": self._oldest_s}
        chain = self._database.execute(_PREVIOUS_IDS, values).fetchall()
        if not chain or chain[-1][0] is not None:
            return None
        rows = self._database.execute(_ITEMS, values | {"has_output": has_output})
        items: list[StoredItem] = []
        num_bytes = 0
        with closing(rows):
            for item_id, body in rows:
                num_bytes += len(body)
                if num_bytes > max_bytes:
                    raise ConversationTooLarge
                items.append(StoredItem(item_id, bytes(body)))
        return items

    def _items(self, owner: str, ids: Sequence[str], max_bytes: int) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        num_bytes = 0
        for item_id in dict.fromkeys(ids):
            row = self._database.execute(
                "SELECT items.body FROM items JOIN responses "
                "ON responses.owner = items.owner AND responses.id = items.response_id "
                "WHERE items.owner = ? AND items.id = ? AND used_s >= ? LIMIT 1",
                (owner, item_id, self._oldest_s),
            ).fetchone()
            if row is not None:
                found[item_id] = bytes(row[0])
                num_bytes += len(row[0])
                if num_bytes > max_bytes:
                    raise ConversationTooLarge
        return found


def check_store(path: Path) -> None:
    """Check that a store can be opened or created, without changing or creating the file.

    Raises:
        ConfigError: It cannot.
    """
    if not path.exists():
        if not os.access(path.parent, os.W_OK):
            raise ConfigError(f"response_store: {path.parent} is not a writable directory")
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            _check_version(database)
    except sqlite3.Error as error:
        raise ConfigError(f"response_store: {path} cannot be used: {error}") from error


def _opened(path: Path) -> sqlite3.Connection:
    """Return a connection to the file, which is prepared if it is new. Raises sqlite3.Error."""
    database = sqlite3.connect(path, _BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA foreign_keys = ON")
        if _check_version(database) == 0:
            with _transaction(database):
                if _check_version(database) == 0:  # not prepared by another gateway meanwhile
                    for statement in _SCHEMA.split(";"):
                        database.execute(statement)
    except BaseException:
        database.close()
        raise
    return database


def _check_version(database: sqlite3.Connection) -> int:
    """Return the version of the schema; 0 if the file is empty.

    Raises:
        sqlite3.Error: It is not a store, or of another version.
    """
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    (num_tables,) = database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if version not in {0, _VERSION} or (version == 0 and num_tables):
        raise sqlite3.DatabaseError("the file is a database of something else")
    return version


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield database
    except BaseException:
        if database.in_transaction:  # SQLite may have ended it
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
