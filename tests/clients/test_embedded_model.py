"""The programs of docs/clients.md and `llm-comply`, with the embedded model of `make serve`."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.commands import NODE, SCRIPTS, run
from tests.support.make_serve import MODEL, ROOT, Served, interrupt, start_stack

pytestmark = pytest.mark.clients

PAGE = (ROOT / "docs" / "clients.md").read_text()
PROGRAMS = re.findall(r"^```(python|js)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    stack = start_stack(tmp_path_factory.mktemp("serve") / "stderr.log")
    yield stack
    interrupt(stack)


@pytest.mark.parametrize(
    ("language", "text"), PROGRAMS, ids=[text.splitlines()[0][:60] for _, text in PROGRAMS]
)
async def test_program_of_the_page_runs(served: Served, language: str, text: str) -> None:
    text = text.replace("8000", str(served.http_port))
    command = {
        "python": (sys.executable, "-c", text),
        "js": (NODE, "--input-type=module", "--eval", text),  # imports are resolved in `cwd`
    }[language]
    assert "Paris" in await run(*command, cwd=SCRIPTS, env={"HOME": os.environ["HOME"]})


@pytest.mark.parametrize("form", ["openai-chat", "open-responses", "anthropic"])
async def test_llm_comply_finds_only_that_the_model_has_no_images(
    served: Served, form: str
) -> None:
    out = await run(
        *(Path(sys.executable).parent / "llm-comply", "--json", "--format", form),
        *("--base-url", served.base_url, "--model", MODEL, "--api-key", "none"),
        env={"HOME": os.environ["HOME"]},
        codes=(0, 1),
    )
    failed = [test["id"] for test in json.loads(out)["results"] if test["status"] == "failed"]
    assert len(failed) == 1
    assert "image" in failed[0]
