"""Codex over OpenAI's Responses API, with tasks whose steps a script decides."""

import json
from pathlib import Path
from typing import Any

import pytest

from chatrpc.v1 import chat_pb2
from tests.clients.commands import NODE_MODULES, run
from tests.fakes.chat_service import MODEL, Admit, Delta, FakeService, Finish, reasoning, tool_call

pytestmark = pytest.mark.clients

[PROGRAM] = NODE_MODULES.glob("@openai/codex-*/vendor/*/bin/codex")


async def codex(url: str, folder: Path, task: str) -> list[Any]:
    """Run a task in a folder, without settings of the user. Return its events."""
    provider = f'{{name="chatrpc", base_url="{url}/v1", env_key="KEY", wire_api="responses"}}'
    settings = {
        "model": f'"{MODEL}"',
        "model_provider": '"chatrpc"',
        "model_providers.chatrpc": provider,
        "web_search": '"disabled"',  # OpenAI's servers would search
        "sandbox_mode": '"danger-full-access"',  # the sandbox may not work in a container
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    out = await run(
        PROGRAM,
        *("exec", "--json", "--skip-git-repo-check", *options, task),
        cwd=folder,
        env={"HOME": str(folder), "CODEX_HOME": str(folder), "KEY": "none"},
    )
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


async def test_task_runs_a_command(url: str, service: FakeService, tmp_path: Path) -> None:
    arguments = json.dumps({"cmd": "echo Rain > oslo.txt"})
    service.turns = [
        [
            Admit(),
            reasoning("A file is needed."),
            Delta("I write the file."),
            tool_call("", "call_1", "exec_command"),
            tool_call(arguments[:10]),
            tool_call(arguments[10:]),
            Finish(chat_pb2.FINISH_REASON_TOOL_CALLS),
        ],
        [Admit(), Delta("The file is "), Delta("written."), Finish()],
    ]
    events = await codex(url, tmp_path, "Write the weather.")
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    texts = [item["text"] for item in items if item["type"] == "agent_message"]
    assert texts == ["I write the file.", "The file is written."]
    assert (tmp_path / "oslo.txt").read_text() == "Rain\n"
    assert events[-1]["type"] == "turn.completed"
    assert events[-1]["usage"]["output_tokens"] > 0
    sent = service.calls[-1].params.messages
    assert sent[-2].reasoning_content == "A file is needed."
    assert json.loads(sent[-2].tool_calls[0].function.arguments_json) == json.loads(arguments)
    assert sent[-1].tool_call_id == "call_1"
