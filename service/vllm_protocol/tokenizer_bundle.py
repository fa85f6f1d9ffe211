"""The tokenizer of a model as a ZIP archive, from which clients construct their own."""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smg_grpc_proto.generated import common_pb2

CHUNK_BYTES = 64 << 10

# The files that vLLM's own server sends, at most: those of the tokenizer, the configuration of the
# model and its default sampling parameters. smg-grpc-servicer 0.14.1, tokenizer_bundle.py.
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
_PATTERNS = ("*.jinja", "*.model", "*.tiktoken")
# All files have this time, so that equal files give equal archives on all replicas.
_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class TokenizerBundle:
    """A ZIP archive of a tokenizer's files.

    Attributes:
        sha256: The SHA-256 of `data`, in hexadecimal digits.
    """

    data: bytes
    sha256: str

    def chunks(self) -> Iterator[common_pb2.GetTokenizerChunk]:
        """Yield the archive in chunks. Only the last has the checksum."""
        for start in range(0, len(self.data), CHUNK_BYTES):
            end = start + CHUNK_BYTES
            yield common_pb2.GetTokenizerChunk(
                data=self.data[start:end], sha256=self.sha256 if end >= len(self.data) else ""
            )


def load_tokenizer_bundle(path: Path) -> TokenizerBundle:
    """Return the tokenizer of the model in the directory `path`. This reads and packs megabytes."""
    names = {name for name in _FILES if (path / name).is_file()}
    names |= {file.name for pattern in _PATTERNS for file in path.glob(pattern)}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name in sorted(names):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            bundle.writestr(entry, (path / name).read_bytes())
    data = archive.getvalue()
    return TokenizerBundle(data, hashlib.sha256(data).hexdigest())
