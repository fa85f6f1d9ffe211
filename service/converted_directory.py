"""Directories of converted files that are used only if they are whole."""

import errno
import json
import os
from pathlib import Path

_SIZES = "conversion.json"  # the size of every other file, written last


def seal(directory: Path) -> None:
    """Write the sizes of the files in `directory`, and everything in it to the disk.

    A directory that is renamed after this is whole, also if the machine has lost its power since.

    Raises:
        OSError: the disk is full, for example.
    """
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    sizes = {str(file.relative_to(directory)): file.stat().st_size for file in files}
    (directory / _SIZES).write_text(json.dumps(sizes))
    for path in (*directory.rglob("*"), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_complete(directory: Path) -> bool:
    """Whether `directory` exists and has every file that it had when it was sealed, in its size."""
    try:
        sizes = json.loads((directory / _SIZES).read_bytes())
        return bool(sizes) and all(
            (directory / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, AttributeError):
        return False


def reason(error: BaseException) -> str:
    """One line that says why a conversion or a download failed.

    safetensors and other writers report a full disk without its name, or on a second line.
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
