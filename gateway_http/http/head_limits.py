"""Limits of the bytes of a request that are not content: its head, and the heads of its chunks."""

# Maximum size of a head in bytes, as in most servers and proxies. The API needs about 1 KiB.
MAX_HEAD_BYTES = 64 << 10
MAX_HEADERS = 100
# The head of a chunk as clients write it: two line ends and a length of up to eight digits.
_CHUNK_HEAD_BYTES = 12


class HeadSize:
    """The size of one head, or of the trailers of a body.

    The parser reports parts of a head only when they are complete. An unfinished part can get long
    in the parser's memory, so the received bytes are counted, too.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set the count to 0."""
        self._num_parsed_bytes = 0
        self._num_received_bytes = 0
        self._num_headers = 0

    def add_url(self, url: bytes) -> None:
        """Count a part of the URL."""
        self._num_parsed_bytes += len(url)

    def add_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        self._num_headers += 1
        self._num_parsed_bytes += len(name) + len(value)

    def add_received(self, num_bytes: int) -> None:
        """Count received bytes that do not complete the head."""
        self._num_received_bytes += num_bytes

    @property
    def is_exceeded(self) -> bool:
        """True if the head has too many bytes or headers."""
        num_bytes = max(self._num_parsed_bytes, self._num_received_bytes)
        return num_bytes > MAX_HEAD_BYTES or self._num_headers > MAX_HEADERS


class ChunkOverhead:
    """The bytes of a chunked body that are neither content nor the heads of chunks.

    These are chunk extensions and trailers, which no client of the API needs.
    """

    def __init__(self) -> None:
        self._num_bytes = 0
        self._num_expected = 0

    def begin_body(self) -> None:
        """Set the count to 0 for the next request."""
        self._num_bytes = 0

    def begin_data(self) -> None:
        """Begin to count the data that has just been received."""
        self._num_expected = 0

    def add_content(self, num_bytes: int) -> None:
        """Count bytes of the data that are content."""
        self._num_expected += num_bytes

    def add_chunk(self) -> None:
        """Count a chunk that begins in the data."""
        self._num_expected += _CHUNK_HEAD_BYTES

    def end_data(self, num_bytes: int) -> None:
        """Count the rest of the data, which has `num_bytes` bytes of one body."""
        self._num_bytes += max(0, num_bytes - self._num_expected)

    @property
    def is_exceeded(self) -> bool:
        """True if there are more bytes than a head may have."""
        return self._num_bytes > MAX_HEAD_BYTES
