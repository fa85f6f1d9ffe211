"""Files of API keys, for tests of whatever asks for them."""

from pathlib import Path

from chatrpc_process.access.secret import digest_of

SECRET, OTHER = "sk-chatrpc-one", "sk-chatrpc-two"


def key(secret: str = SECRET, *lines: str, name: str = "one") -> str:
    """One key, as it stands in a file, with these lines of limits."""
    return "\n".join(["[[key]]", f'name = "{name}"', f'sha256 = "{digest_of(secret)}"', *lines, ""])


def write(path: Path, text: str) -> Path:
    """Put the text there at once, as another file than there was."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)
    return path
