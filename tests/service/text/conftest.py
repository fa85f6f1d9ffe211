"""Small tokenizers of the three kinds that differ in decoding, from the tokenizers library."""

import pytest

from tests.support.library_tokenizers import KINDS, LibraryTokenizer


@pytest.fixture(scope="session", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> LibraryTokenizer:
    return LibraryTokenizer(KINDS[request.param]())
