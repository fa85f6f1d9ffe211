"""Converts the tools of OpenAI's Responses API to the proto's functions.

The proto has functions only, each with a name of its own. A tool of a namespace becomes a function
whose name is that of the namespace, `__` and that of the tool.
"""

from collections.abc import Iterator
from typing import NamedTuple

from chatrpc.v1 import chat_pb2
from gateway_http.convert import custom_tools
from gateway_http.convert.json_text import raw_text
from gateway_http.protocol import responses_request as openai
from gateway_http.protocol.error import UnsupportedParameter


class PlacedTool(NamedTuple):
    """A tool that the model may call.

    Attributes:
        path: Its path in the body.
        tool: The tool.
        namespace: The name of its namespace; None if it has none.
        description: Its description, after that of its namespace.
    """

    path: str
    tool: openai.CallableTool
    namespace: str | None
    description: str

    @property
    def is_custom(self) -> bool:
        return isinstance(self.tool, openai.ResponseCustomTool)

    @property
    def function_name(self) -> str:
        """The name of the function that it becomes."""
        return function_name(self.tool.name, self.namespace)


def function_name(name: str, namespace: str | None) -> str:
    """Return the name of the function that a tool becomes."""
    return f"{namespace}__{name}" if namespace else name


def placed_tools(prompt: openai.ResponsePrompt) -> Iterator[PlacedTool]:
    """Yield the tools of a request, in the order of their functions."""
    for i, tool in enumerate(prompt.tools or ()):
        path = f"tools[{i}]"
        if isinstance(tool, openai.ResponseNamespaceTool):
            for j, each in enumerate(tool.tools):
                texts = filter(None, (tool.description, each.description))
                yield PlacedTool(f"{path}.tools[{j}]", each, tool.name, "\n\n".join(texts))
        else:
            yield PlacedTool(path, tool, None, tool.description or "")


def functions(prompt: openai.ResponsePrompt) -> list[chat_pb2.Tool]:
    """Return the functions of a request.

    Raises:
        UnsupportedParameter: A format of a custom tool is not supported.
    """
    return [_function(placed) for placed in placed_tools(prompt)]


def sent_names(prompt: openai.ResponsePrompt) -> dict[str, str]:
    """Return the client's paths of the tools, by their paths in chat completions.

    See `gateway_http.protocol.params.param_of`. A path comes before the beginnings of it.
    """
    names: dict[str, str] = {}
    for i, placed in enumerate(placed_tools(prompt)):
        schema = "format.definition" if placed.is_custom else "parameters"
        names[f"tools[{i}].function.parameters"] = f"{placed.path}.{schema}"
        names[f"tools[{i}].function"] = placed.path
    return names


def _function(placed: PlacedTool) -> chat_pb2.Tool:
    match placed.tool:
        case openai.ResponseFunctionTool() as tool:
            schema, strict = raw_text(tool.parameters), tool.strict
        case openai.ResponseCustomTool(format=openai.CustomGrammarFormat(syntax="lark")):
            raise UnsupportedParameter(f"{placed.path}.format.syntax", "Use a regular expression.")
        case openai.ResponseCustomTool() as tool:
            schema, strict = custom_tools.input_schema(tool.format), True
    return chat_pb2.Tool(
        function=chat_pb2.FunctionDefinition(
            name=placed.function_name,
            description=placed.description,
            parameters_json_schema=schema,
            strict=strict,
        )
    )
