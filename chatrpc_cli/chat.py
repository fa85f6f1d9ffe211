"""A conversation with a model in the terminal."""

import asyncio
import readline  # noqa: F401  gives `input` line editing and a history
from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc
import typer

from chatrpc.v1 import chat_pb2, chat_service_pb2, chat_service_pb2_grpc
from chatrpc_cli.channels import Tls, aio_channel
from chatrpc_cli.credentials import credentials
from chatrpc_cli.errors import report


class Conversation:
    """A conversation with one model. Its history has the messages that got a response."""

    def __init__(
        self,
        target: str,
        model: str,
        sampling: chat_pb2.SamplingParams,
        system: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.target = target
        self._tls = tls
        self.model = model
        self._sampling = sampling
        self._messages = [_message(chat_pb2.ROLE_SYSTEM, system)] if system else []

    async def ask(self, question: str) -> AsyncGenerator[chat_pb2.ChoiceDelta, None]:
        """Send a user message and yield the response's deltas. Closing the generator cancels it.

        Raises:
            grpc.RpcError: The call failed.
        """
        message = _message(chat_pb2.ROLE_USER, question)
        params = chat_pb2.ChatCompletionParams(
            model=self.model, messages=[*self._messages, message], sampling=self._sampling
        )
        request = chat_service_pb2.StreamChatCompletionRequest(params=params)
        pieces: list[str] = []
        async with aio_channel(self.target, self._tls) as channel:
            stub = chat_service_pb2_grpc.ChatServiceStub(channel)
            call = stub.StreamChatCompletion(request, metadata=credentials())
            try:
                async for response in call:
                    for choice in response.chunk.choices:
                        pieces.append(choice.delta.content)
                        yield choice
            finally:
                call.cancel()
                if response_text := "".join(pieces):
                    self._messages += [message, _message(chat_pb2.ROLE_ASSISTANT, response_text)]


def print_response(conversation: Conversation, question: str) -> None:
    """Stream the response to stdout, and the model's reasoning, dimmed, to stderr.

    Raises:
        grpc.RpcError: The call failed. The output line is ended.
        KeyboardInterrupt: The user pressed Ctrl-C. The call is cancelled and the output line is
        ended.
    """
    # asyncio handles Ctrl-C as a cancellation between two steps. gRPC's synchronous client handles
    # it inside a step: one of 160 interrupts left a lock half released (RuntimeError, 1.85.1).
    asyncio.run(_print_response(conversation, question))


async def _print_response(conversation: Conversation, question: str) -> None:
    finish, has_text = chat_pb2.FINISH_REASON_UNSPECIFIED, False
    async with aclosing(conversation.ask(question)) as choices:
        try:
            async for choice in choices:
                reasoning, text = choice.delta.reasoning_content, choice.delta.content
                if reasoning:
                    typer.secho(reasoning, dim=True, nl=False, err=True)
                if text:
                    typer.echo(text, nl=False)
                    has_text = True
                finish = choice.finish_reason
        finally:
            if has_text:
                typer.echo()
    if finish == chat_pb2.FINISH_REASON_LENGTH:
        _note("truncated: the token limit or the model's context length was reached")


def converse(conversation: Conversation) -> None:
    """Send each typed line until Ctrl-C or Ctrl-D is pressed at the prompt.

    Ctrl-C during a response stops only the response. A failed call is reported, and the
    conversation continues.
    """
    _note(f"{conversation.model} at {conversation.target}; Ctrl-C stops a response, Ctrl-D exits")
    while True:
        try:
            question = input("> ")
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        if not question.strip():
            continue
        try:
            print_response(conversation, question)
        except KeyboardInterrupt:
            _note("stopped")
        except grpc.RpcError as error:
            report(error, conversation.target)


def _message(role: chat_pb2.Role.ValueType, text: str) -> chat_pb2.ChatMessage:
    return chat_pb2.ChatMessage(role=role, content=[chat_pb2.ContentPart(text=text)])


def _note(text: str) -> None:
    typer.secho(f"[{text}]", dim=True, err=True)
