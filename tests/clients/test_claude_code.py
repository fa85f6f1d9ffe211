"""Claude Code over Anthropic's Messages API, with tasks whose steps a script decides."""

import json
from pathlib import Path
from typing import Any

import pytest

from chatrpc.v1 import chat_pb2
from tests.clients.commands import NODE_MODULES, run
from tests.fakes.chat_service import MODEL, Admit, Delta, FakeService, Finish, reasoning, tool_call

pytestmark = pytest.mark.clients

[PROGRAM] = NODE_MODULES.glob("@anthropic-ai/claude-code-*/claude")


async def claude(url: str, folder: Path, task: str, *options: str) -> Any:
    """Run a task in a folder, without settings and without access to other servers."""
    out = await run(
        PROGRAM,
        *("--print", task, "--output-format", "json", *options),
        cwd=folder,
        env={
            "HOME": str(folder),
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": "none",
            "ANTHROPIC_MODEL": MODEL,
            "ANTHROPIC_SMALL_FAST_MODEL": MODEL,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
    )
    return json.loads(out)


async def test_task_writes_a_file(url: str, service: FakeService, tmp_path: Path) -> None:
    file = tmp_path / "oslo.txt"
    arguments = json.dumps({"file_path": str(file), "content": "Rain"})
    service.turns = [
        [
            Admit(),
            reasoning("A file is needed."),
            Delta("I write the file."),
            tool_call("", "call_1", "Write"),
            tool_call(arguments[:20]),
            tool_call(arguments[20:]),
            Finish(chat_pb2.FINISH_REASON_TOOL_CALLS),
        ],
        [Admit(), Delta("The file is "), Delta("written."), Finish()],
    ]
    result = await claude(url, tmp_path, "Write the weather.", "--allowedTools", "Write")
    assert result["result"] == "The file is written."
    assert not result["is_error"]
    assert file.read_text() == "Rain"
    sent = service.calls[-1].params.messages
    [call] = sent[-2].tool_calls
    assert json.loads(call.function.arguments_json) == json.loads(arguments)
    assert sent[-1].role == chat_pb2.ROLE_TOOL
    assert sent[-1].tool_call_id == "call_1"
