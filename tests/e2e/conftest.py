"""A stack as a new user starts it: `make serve` with the embedded model, on free ports."""

from collections.abc import Iterator

import openai
import pytest

from tests.support.make_serve import Served, interrupt, start_stack


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    stack = start_stack(tmp_path_factory.mktemp("serve") / "stderr.log")
    yield stack
    interrupt(stack)


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.base_url, api_key="none", max_retries=0) as client:
        yield client
