import errno
import os
import resource
import shutil
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from numpy.typing import NDArray

from service.engine.block_files import BlockFiles, DamagedBlock

_NUM_BYTES = 1000
_HEADER_BYTES = 77
_FILE_BYTES = _NUM_BYTES + _HEADER_BYTES


class Clock:
    """A clock of nanoseconds that advances by a second at each look."""

    def __init__(self) -> None:
        self.now_ns = 10**18

    def __call__(self) -> int:
        self.now_ns += 10**9
        return self.now_ns


def key_of(number: int) -> bytes:
    return sha256(bytes([number])).digest()


def content_of(number: int) -> NDArray[np.uint8]:
    return np.full(_NUM_BYTES, number, dtype=np.uint8)


clock = Clock()


def opened(directory: Path, max_blocks: int = 100) -> BlockFiles:
    files = BlockFiles(directory, max_blocks * _FILE_BYTES, clock_ns=clock)
    files.open()
    return files


def file_of(directory: Path, number: int) -> Path:
    return directory / "blocks" / f"{key_of(number).hex()}.kv"


def write(files: BlockFiles, *numbers: int) -> None:
    for number in numbers:
        files.write(key_of(number), content_of(number), clock())


def known(files: BlockFiles, numbers: range) -> list[int]:
    return [number for number in numbers if key_of(number) in files]


def test_written_block_is_read(tmp_path: Path) -> None:
    files = opened(tmp_path)
    write(files, 1)
    content = files.read(key_of(1), _NUM_BYTES, clock())
    assert content is not None
    assert content.tolist() == content_of(1).tolist()
    assert files.read(key_of(2), _NUM_BYTES, clock()) is None


def test_block_is_found_after_a_restart(tmp_path: Path) -> None:
    write(opened(tmp_path), 1)
    restarted = opened(tmp_path)
    assert key_of(1) in restarted
    assert restarted.num_bytes == _FILE_BYTES
    assert restarted.read(key_of(1), _NUM_BYTES, clock()) is not None


def test_files_are_only_for_this_user(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "cache"
    files = opened(directory)
    write(files, 1)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "blocks").stat().st_mode) == 0o700
    assert stat.S_IMODE(file_of(directory, 1).stat().st_mode) == 0o600


def test_permissions_that_a_mount_has_widened_are_restored(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "blocks").chmod(0o2775)
    opened(tmp_path)
    assert not (tmp_path / "blocks").stat().st_mode & 0o077


def test_names_have_neither_key_nor_content_in_clear(tmp_path: Path) -> None:
    write(opened(tmp_path), 1)
    [file] = (tmp_path / "blocks").iterdir()
    assert file.name == f"{key_of(1).hex()}.kv"


def test_least_recently_used_blocks_are_removed(tmp_path: Path) -> None:
    files = opened(tmp_path, max_blocks=4)
    write(files, 0, 1, 2, 3)
    files.read(key_of(0), _NUM_BYTES, clock())
    files.touch(key_of(1), clock())
    write(files, 4)
    assert known(files, range(5)) == [0, 1, 4]
    assert files.num_evictions == 2
    assert sorted(p.name for p in (tmp_path / "blocks").iterdir()) == sorted(
        file_of(tmp_path, number).name for number in (0, 1, 4)
    )


def test_blocks_of_another_process_are_found_and_counted(tmp_path: Path) -> None:
    mine, other = (opened(tmp_path, 4) for _ in range(2))
    write(other, 0, 1, 2)
    assert key_of(0) not in mine
    mine.refresh()
    assert known(mine, range(4)) == [0, 1, 2]
    write(mine, 3, 4)
    assert len(list((tmp_path / "blocks").iterdir())) <= 4
    assert other.read(key_of(0), _NUM_BYTES, clock()) is None, "the other process has removed it"
    assert key_of(0) not in other


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: b"X" + content[1:],
        lambda content: content[:20] + bytes([content[20] ^ 1]) + content[21:],  # the key
        lambda content: bytes(len(content)),
        lambda content: b"",
    ],
)
def test_damaged_file_is_not_read_and_removed(tmp_path: Path, damage: object) -> None:
    files = opened(tmp_path)
    write(files, 1)
    path = file_of(tmp_path, 1)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DamagedBlock, match=path.name):
        files.read(key_of(1), _NUM_BYTES, clock())
    assert not path.exists()
    assert key_of(1) not in files
    assert files.num_bytes == 0


def test_block_under_the_name_of_another_is_removed(tmp_path: Path) -> None:
    files = opened(tmp_path)
    write(files, 1, 2)
    shutil.copy(file_of(tmp_path, 1), file_of(tmp_path, 2))
    with pytest.raises(DamagedBlock):
        files.read(key_of(2), _NUM_BYTES, clock())
    assert files.read(key_of(1), _NUM_BYTES, clock()) is not None


def test_files_with_other_names_are_not_touched(tmp_path: Path) -> None:
    opened(tmp_path)
    foreign = tmp_path / "blocks" / "notes.txt"
    foreign.write_bytes(bytes(100 * _FILE_BYTES))
    files = opened(tmp_path, max_blocks=2)
    write(files, 1, 2, 3)
    assert foreign.exists()


def test_unfinished_file_is_removed_when_it_is_old(tmp_path: Path) -> None:
    opened(tmp_path)
    new, old = (tmp_path / "blocks" / f"{name * 16}.tmp" for name in "ab")
    for path, age_s in ((new, 10), (old, 10_000)):
        path.write_bytes(b"part of a block")
        os.utime(path, ns=(clock.now_ns - age_s * 10**9,) * 2)
    opened(tmp_path)
    assert new.exists()
    assert not old.exists()


@contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """Let this process write no file of more than `num_bytes` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_failed_write_leaves_no_file(tmp_path: Path) -> None:
    files = opened(tmp_path)
    write(files, 1)
    with full_disk(_FILE_BYTES // 2), pytest.raises(OSError, match="large") as raised:
        write(files, 2)
    assert raised.value.errno == errno.EFBIG
    assert [p.name for p in (tmp_path / "blocks").iterdir()] == [file_of(tmp_path, 1).name]
    assert key_of(2) not in files


def test_directory_that_is_a_file_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        opened(tmp_path / "file")


class Files(RuleBasedStateMachine):
    """Two processes that share a directory, and a disk that damages files."""

    max_blocks = 6

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(mkdtemp())
        self.processes = [self._opened() for _ in range(2)]
        self.damaged: set[int] = set()

    def _opened(self) -> BlockFiles:
        return opened(self.directory, self.max_blocks)

    @rule(process=st.integers(0, 1), number=st.integers(0, 15))
    def write(self, process: int, number: int) -> None:
        self.processes[process].write(key_of(number), content_of(number), clock())
        self.damaged.discard(number)
        assert key_of(number) in self.processes[process]

    @rule(process=st.integers(0, 1), number=st.integers(0, 15))
    def read(self, process: int, number: int) -> None:
        exists = file_of(self.directory, number).exists()
        try:
            content = self.processes[process].read(key_of(number), _NUM_BYTES, clock())
        except DamagedBlock:
            assert number in self.damaged
            assert not file_of(self.directory, number).exists()
            self.damaged.remove(number)
            return
        assert (content is not None) == exists
        if content is not None:
            assert number not in self.damaged
            assert content.tolist() == content_of(number).tolist()

    @rule(number=st.integers(0, 15), offset=st.integers(0, _FILE_BYTES - 1))
    def damage(self, number: int, offset: int) -> None:
        path = file_of(self.directory, number)
        if path.exists() and number not in self.damaged:
            content = bytearray(path.read_bytes())
            content[offset] ^= 0x40
            path.write_bytes(content)
            self.damaged.add(number)

    @rule(process=st.integers(0, 1), num_bytes=st.integers(0, _FILE_BYTES))
    def crash_while_writing(self, process: int, num_bytes: int) -> None:
        unfinished = self.directory / "blocks" / f"{num_bytes:016x}.tmp"
        unfinished.write_bytes(bytes(num_bytes))
        self.processes[process] = self._opened()

    @rule(process=st.integers(0, 1))
    def refresh(self, process: int) -> None:
        self.processes[process].refresh()

    @invariant()
    def size_is_bounded(self) -> None:
        num_bytes = sum(p.stat().st_size for p in (self.directory / "blocks").glob("*.kv"))
        # A process may exceed the limit by a sixteenth, and by one block.
        assert num_bytes <= (self.max_blocks * 17 / 16 + 1) * _FILE_BYTES

    def teardown(self) -> None:
        shutil.rmtree(self.directory)


TestFiles = Files.TestCase
