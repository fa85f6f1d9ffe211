"""A conversation with a model: what is asked and remembered, and how it looks in a terminal."""

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
    """Questions to one model. Those answered, in full or in part, are remembered."""

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
        """The answer as it comes. Closing the generator cancels the call.

        Raises grpc.RpcError.
        """
        asked = _message(chat_pb2.ROLE_USER, question)
        params = chat_pb2.ChatCompletionParams(
            model=self.model, messages=[*self._messages, asked], sampling=self._sampling
        )
        request = chat_service_pb2.StreamChatCompletionRequest(params=params)
        said: list[str] = []
        async with aio_channel(self.target, self._tls) as channel:
            stub = chat_service_pb2_grpc.ChatServiceStub(channel)
            call = stub.StreamChatCompletion(request, metadata=credentials())
            try:
                async for response in call:
                    for choice in response.chunk.choices:
                        said.append(choice.delta.content)
                        yield choice
            finally:
                call.cancel()
                if answer := "".join(said):
                    self._messages += [asked, _message(chat_pb2.ROLE_ASSISTANT, answer)]


def answer(conversation: Conversation, question: str) -> None:
    """Write the answer to stdout as it comes; to stderr, dimmed, the model's reasoning.

    Raises grpc.RpcError, and KeyboardInterrupt; either way the call is over and its line ended.
    """
    # asyncio turns Ctrl-C into a cancellation between two steps. gRPC's synchronous client takes it
    # in the middle of one: of 160 interrupts one hit a lock half released (RuntimeError, 1.85.1).
    asyncio.run(_answer(conversation, question))


async def _answer(conversation: Conversation, question: str) -> None:
    finish, has_text = chat_pb2.FINISH_REASON_UNSPECIFIED, False
    async with aclosing(conversation.ask(question)) as choices:
        try:
            async for choice in choices:
                thought, text = choice.delta.reasoning_content, choice.delta.content
                if thought:
                    typer.secho(thought, dim=True, nl=False, err=True)
                if text:
                    typer.echo(text, nl=False)
                    has_text = True
                finish = choice.finish_reason
        finally:
            if has_text:
                typer.echo()
    if finish == chat_pb2.FINISH_REASON_LENGTH:
        _note("cut off: the token limit or the end of the context was reached")


def converse(conversation: Conversation) -> None:
    """Ask what is typed until Ctrl-C or Ctrl-D at the prompt. Ctrl-C in an answer ends that one.

    A failure is reported and the conversation goes on.
    """
    _note(f"{conversation.model} at {conversation.target}; Ctrl-C stops an answer, Ctrl-D leaves")
    while True:
        try:
            question = input("> ")
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        if not question.strip():
            continue
        try:
            answer(conversation, question)
        except KeyboardInterrupt:
            _note("stopped")
        except grpc.RpcError as error:
            report(error, conversation.target)


def _message(role: chat_pb2.Role.ValueType, text: str) -> chat_pb2.ChatMessage:
    return chat_pb2.ChatMessage(role=role, content=[chat_pb2.ContentPart(text=text)])


def _note(text: str) -> None:
    typer.secho(f"[{text}]", dim=True, err=True)
