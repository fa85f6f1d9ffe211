"""Directories of converted files, which are used only if they are complete."""

import errno
import json
import os
from pathlib import Path

_SIZES = "conversion.json"  # has the size of every other file, and is written last


def seal(directory: Path) -> None:
    """Write the sizes of the files into `directory` and flush everything in it to the disk.

    If the directory is renamed after this, it is complete, even after a power failure. A linked
    file is not flushed.

    Raises:
        OSError: A file cannot be written, for example because the disk is full.
    """
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    sizes = {str(file.relative_to(directory)): file.stat().st_size for file in files}
    (directory / _SIZES).write_text(json.dumps(sizes))
    for path in (*directory.rglob("*"), directory):
        if path.is_symlink():
            continue  # its target may be on a read-only file system, where fsync fails
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_complete(directory: Path) -> bool:
    """Return True if `directory` has all files of the time when it was sealed, in their sizes."""
    try:
        sizes = json.loads((directory / _SIZES).read_bytes())
        return bool(sizes) and all(
            (directory / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, AttributeError):
        return False


def reason(error: BaseException) -> str:
    """Return one line with the reason why a conversion or a download failed.

    A full disk is recognized in any of the causes: safetensors and other writers report it in an
    error of their own or on a second line.
    """
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    for code, text in ((errno.ENOSPC, "No space left on device"), (errno.EDQUOT, "Disk quota")):
        for one in causes:
            is_full = isinstance(one, OSError) and one.errno == code
            if is_full or text in str(one) or f"os error {code}" in str(one):
                return f"the disk is full ({os.strerror(code)})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
