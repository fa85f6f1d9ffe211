"""Files of API keys, for tests of servers that require keys."""

from pathlib import Path

from chatrpc_process.access.secret import digest_of

SECRET, OTHER = "sk-chatrpc-one", "sk-chatrpc-two"


def key(secret: str = SECRET, *lines: str, name: str = "one") -> str:
    """Return the entry of one key in a key file, with these lines of limits."""
    return "\n".join(["[[key]]", f'name = "{name}"', f'sha256 = "{digest_of(secret)}"', *lines, ""])


def write(path: Path, text: str) -> Path:
    """Replace the file by a new one with this text, in one operation."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)
    return path
