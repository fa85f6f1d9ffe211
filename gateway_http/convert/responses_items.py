"""The items of a response while they are generated, and their events."""

from abc import ABC, abstractmethod

from msgspec import UNSET, UnsetType

from gateway_http.convert.custom_tools import InputText
from gateway_http.convert.thinking_signature import signature_with_text
from gateway_http.protocol import responses as openai
from gateway_http.protocol.response import TokenLogprob
from gateway_http.protocol.responses_request import ReasoningPart, SummaryPart

Events = list[openai.Event]


class OpenItem(ABC):
    """An item whose text is still being generated.

    Args:
        item_id: Its id.
        output_index: Its index in the output.
    """

    def __init__(self, item_id: str, output_index: int) -> None:
        self.id = item_id
        self.output_index = output_index
        self._pieces: list[str] = []  # joined once: appending to a text would copy all of it

    @abstractmethod
    def item(self, text: str, status: openai.ItemStatus) -> openai.OutputItem:
        """Return the item with this text."""

    def begin(self) -> Events:
        """Return the events of the item's start."""
        added = openai.OutputItemAdded(
            output_index=self.output_index, item=self.item("", "in_progress")
        )
        return [added, *self._begun()]

    def add(self, text: str) -> Events:
        """Append text. Return its events."""
        if not text:
            return []
        self._pieces.append(text)
        return self._more(text)

    def finish(self, status: openai.ItemStatus) -> tuple[Events, openai.OutputItem]:
        """Return the events of the item's end, and the item."""
        events = self._rest()
        text = "".join(self._pieces)
        item = self.item(text, status)
        events += self._done(text)
        events.append(openai.OutputItemDone(output_index=self.output_index, item=item))
        return events, item

    def _begun(self) -> Events:
        """Return the events of the start of the item's part, if it has parts."""
        return []

    @abstractmethod
    def _more(self, text: str) -> Events: ...

    def _rest(self) -> Events:
        """Append what is held back until the item's end. Return its events."""
        return []

    @abstractmethod
    def _done(self, text: str) -> Events:
        """Return the events of the end of the item's text and of its part, if it has parts."""


class _OpenContent(OpenItem):
    """An item whose content has one part."""

    @abstractmethod
    def _part(self, text: str) -> openai.ContentPart:
        """Return the part with this text."""

    @abstractmethod
    def _text_done(self, text: str) -> openai.Event:
        """Return the event of the end of the text."""

    def _begun(self) -> Events:
        return [
            openai.ContentPartAdded(
                output_index=self.output_index,
                item_id=self.id,
                content_index=0,
                part=self._part(""),
            )
        ]

    def _done(self, text: str) -> Events:
        return [
            self._text_done(text),
            openai.ContentPartDone(
                output_index=self.output_index,
                item_id=self.id,
                content_index=0,
                part=self._part(text),
            ),
        ]


class OpenText(_OpenContent):
    """A message.

    Attributes:
        new_logprobs: The log probabilities of tokens that no event has had yet.
    """

    def __init__(self, item_id: str, output_index: int) -> None:
        super().__init__(item_id, output_index)
        self._logprobs: list[TokenLogprob] = []
        self.new_logprobs: list[TokenLogprob] = []

    def item(self, text: str, status: openai.ItemStatus) -> openai.OutputMessage:
        return openai.OutputMessage(
            id=self.id,
            status=status,
            content=[] if status == "in_progress" else [self._part(text)],
        )

    def _part(self, text: str) -> openai.OutputText:
        return openai.OutputText(text=text, logprobs=self._logprobs)

    def _more(self, text: str) -> Events:
        logprobs, self.new_logprobs = self.new_logprobs, []
        self._logprobs += logprobs
        return [
            openai.OutputTextDelta(
                output_index=self.output_index,
                item_id=self.id,
                content_index=0,
                delta=text,
                logprobs=logprobs,
            )
        ]

    def _rest(self) -> Events:
        return self._more("") if self.new_logprobs else []

    def _text_done(self, text: str) -> openai.OutputTextDone:
        return openai.OutputTextDone(
            output_index=self.output_index,
            item_id=self.id,
            content_index=0,
            text=text,
            logprobs=self._logprobs,
        )


class OpenRefusal(_OpenContent):
    """A message by which the model declines."""

    def item(self, text: str, status: openai.ItemStatus) -> openai.OutputMessage:
        return openai.OutputMessage(
            id=self.id,
            status=status,
            content=[] if status == "in_progress" else [self._part(text)],
        )

    def _part(self, text: str) -> openai.OutputRefusal:
        return openai.OutputRefusal(text)

    def _more(self, text: str) -> Events:
        return [
            openai.RefusalDelta(
                output_index=self.output_index, item_id=self.id, content_index=0, delta=text
            )
        ]

    def _text_done(self, text: str) -> openai.RefusalDone:
        return openai.RefusalDone(
            output_index=self.output_index, item_id=self.id, content_index=0, refusal=text
        )


class OpenReasoning(_OpenContent):
    """Reasoning, in the content of its item.

    Args:
        is_encrypted: True if the item has a value to send back.
    """

    def __init__(self, item_id: str, output_index: int, *, is_encrypted: bool) -> None:
        super().__init__(item_id, output_index)
        self._is_encrypted = is_encrypted

    def item(self, text: str, status: openai.ItemStatus) -> openai.ReasoningOutput:
        return openai.ReasoningOutput(
            id=self.id,
            status=status,
            summary=[],
            content=[] if status == "in_progress" else [self._part(text)],
            encrypted_content=self._encrypted(text, status),
        )

    def _part(self, text: str) -> ReasoningPart:
        return ReasoningPart(text)

    def _encrypted(self, text: str, status: openai.ItemStatus) -> str | UnsetType:
        if not self._is_encrypted:
            return UNSET
        return "" if status == "in_progress" else signature_with_text(text)

    def _more(self, text: str) -> Events:
        return [
            openai.ReasoningTextDelta(
                output_index=self.output_index, item_id=self.id, content_index=0, delta=text
            )
        ]

    def _text_done(self, text: str) -> openai.ReasoningTextDone:
        return openai.ReasoningTextDone(
            output_index=self.output_index, item_id=self.id, content_index=0, text=text
        )


class OpenSummary(OpenReasoning):
    """Reasoning, in the summary of its item."""

    def item(self, text: str, status: openai.ItemStatus) -> openai.ReasoningOutput:
        return openai.ReasoningOutput(
            id=self.id,
            status=status,
            summary=[] if status == "in_progress" else [SummaryPart(text)],
            encrypted_content=self._encrypted(text, status),
        )

    def _begun(self) -> Events:
        return [
            openai.ReasoningSummaryPartAdded(
                output_index=self.output_index,
                item_id=self.id,
                summary_index=0,
                part=SummaryPart(""),
            )
        ]

    def _more(self, text: str) -> Events:
        return [
            openai.ReasoningSummaryTextDelta(
                output_index=self.output_index, item_id=self.id, summary_index=0, delta=text
            )
        ]

    def _done(self, text: str) -> Events:
        return [
            openai.ReasoningSummaryTextDone(
                output_index=self.output_index, item_id=self.id, summary_index=0, text=text
            ),
            openai.ReasoningSummaryPartDone(
                output_index=self.output_index,
                item_id=self.id,
                summary_index=0,
                part=SummaryPart(text),
            ),
        ]


class OpenCall(OpenItem):
    """A tool call, or a call of a custom tool.

    Args:
        call_id: The id of the call.
        name: The name of the tool.
        namespace: Its namespace, if it has one.
    """

    def __init__(
        self,
        item_id: str,
        output_index: int,
        call_id: str,
        name: str,
        namespace: str | UnsetType,
    ) -> None:
        super().__init__(item_id, output_index)
        self._call_id = call_id
        self._name = name
        self._namespace = namespace


class OpenFunctionCall(OpenCall):
    """A tool call: a function with its arguments, which are the text."""

    def item(self, text: str, status: openai.ItemStatus) -> openai.FunctionToolCall:
        return openai.FunctionToolCall(
            id=self.id,
            status=status,
            call_id=self._call_id,
            name=self._name,
            arguments=text,
            namespace=self._namespace,
        )

    def _more(self, text: str) -> Events:
        return [
            openai.FunctionCallArgumentsDelta(
                output_index=self.output_index, item_id=self.id, delta=text
            )
        ]

    def _done(self, text: str) -> Events:
        return [
            openai.FunctionCallArgumentsDone(
                output_index=self.output_index, item_id=self.id, name=self._name, arguments=text
            )
        ]


class OpenCustomCall(OpenCall):
    """A call of a custom tool. The text that is added is that of the function's arguments."""

    def __init__(
        self,
        item_id: str,
        output_index: int,
        call_id: str,
        name: str,
        namespace: str | UnsetType,
    ) -> None:
        super().__init__(item_id, output_index, call_id, name, namespace)
        self._input = InputText()

    def item(self, text: str, status: openai.ItemStatus) -> openai.CustomToolCall:
        return openai.CustomToolCall(
            id=self.id,
            status=status,
            call_id=self._call_id,
            name=self._name,
            input=text,
            namespace=self._namespace,
        )

    def add(self, text: str) -> Events:
        return super().add(self._input.push(text))

    def _more(self, text: str) -> Events:
        return [
            openai.CustomToolCallInputDelta(
                output_index=self.output_index, item_id=self.id, delta=text
            )
        ]

    def _rest(self) -> Events:
        return super().add(self._input.finish())

    def _done(self, text: str) -> Events:
        return [
            openai.CustomToolCallInputDone(
                output_index=self.output_index, item_id=self.id, input=text
            )
        ]
