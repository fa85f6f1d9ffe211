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

    Attributes:
        text: The text so far.
    """

    def __init__(self, item_id: str, output_index: int) -> None:
        self.id = item_id
        self.output_index = output_index
        self.text = ""

    @abstractmethod
    def item(self, text: str, status: openai.ItemStatus) -> openai.OutputItem:
        """Return the item with this text."""

    def begin(self) -> Events:
        """Return the events of the item's start."""
        return [
            openai.OutputItemAdded(
                output_index=self.output_index, item=self.item("", "in_progress")
            )
        ]

    def add(self, text: str) -> Events:
        """Append text. Return its events."""
        self.text += text
        return self._more(text) if text else []

    def finish(self, status: openai.ItemStatus) -> tuple[Events, openai.OutputItem]:
        """Return the events of the item's end, and the item."""
        events = self._done()
        item = self.item(self.text, status)
        events.append(openai.OutputItemDone(output_index=self.output_index, item=item))
        return events, item

    @abstractmethod
    def _more(self, text: str) -> Events: ...

    @abstractmethod
    def _done(self) -> Events:
        """Return the events of the end of the item's parts."""


class OpenText(OpenItem):
    """A message.

    Attributes:
        new_logprobs: The log probabilities of tokens that no event has had yet.
    """

    def __init__(self, item_id: str, output_index: int) -> None:
        super().__init__(item_id, output_index)
        self._logprobs: list[TokenLogprob] = []
        self.new_logprobs: list[TokenLogprob] = []

    def item(self, text: str, status: openai.ItemStatus) -> openai.OutputMessage:
        content: list[openai.OutputText | openai.OutputRefusal] = []
        if status != "in_progress":
            content.append(self._part(text))
        return openai.OutputMessage(id=self.id, status=status, content=content)

    def begin(self) -> Events:
        part = self._part("")
        return [
            *super().begin(),
            openai.ContentPartAdded(
                output_index=self.output_index, item_id=self.id, content_index=0, part=part
            ),
        ]

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

    def _done(self) -> Events:
        return [
            *(self._more("") if self.new_logprobs else ()),
            openai.OutputTextDone(
                output_index=self.output_index,
                item_id=self.id,
                content_index=0,
                text=self.text,
                logprobs=self._logprobs,
            ),
            openai.ContentPartDone(
                output_index=self.output_index,
                item_id=self.id,
                content_index=0,
                part=self._part(self.text),
            ),
        ]


class OpenRefusal(OpenItem):
    """A message by which the model declines."""

    def item(self, text: str, status: openai.ItemStatus) -> openai.OutputMessage:
        content: list[openai.OutputText | openai.OutputRefusal] = []
        if status != "in_progress":
            content.append(openai.OutputRefusal(text))
        return openai.OutputMessage(id=self.id, status=status, content=content)

    def begin(self) -> Events:
        return [
            *super().begin(),
            openai.ContentPartAdded(
                output_index=self.output_index,
                item_id=self.id,
                content_index=0,
                part=openai.OutputRefusal(""),
            ),
        ]

    def _more(self, text: str) -> Events:
        return [
            openai.RefusalDelta(
                output_index=self.output_index, item_id=self.id, content_index=0, delta=text
            )
        ]

    def _done(self) -> Events:
        return [
            openai.RefusalDone(
                output_index=self.output_index, item_id=self.id, content_index=0, refusal=self.text
            ),
            openai.ContentPartDone(
                output_index=self.output_index,
                item_id=self.id,
                content_index=0,
                part=openai.OutputRefusal(self.text),
            ),
        ]


class OpenReasoning(OpenItem):
    """Reasoning, in the content of its item.

    Args:
        is_encrypted: True if the item has a value to send back.
    """

    def __init__(self, item_id: str, output_index: int, *, is_encrypted: bool) -> None:
        super().__init__(item_id, output_index)
        self._is_encrypted = is_encrypted

    def item(self, text: str, status: openai.ItemStatus) -> openai.ReasoningOutput:
        content = [] if status == "in_progress" else [ReasoningPart(text)]
        return openai.ReasoningOutput(
            id=self.id,
            status=status,
            summary=[],
            content=content,
            encrypted_content=self._encrypted(text, status),
        )

    def begin(self) -> Events:
        return [
            *super().begin(),
            openai.ContentPartAdded(
                output_index=self.output_index,
                item_id=self.id,
                content_index=0,
                part=ReasoningPart(""),
            ),
        ]

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

    def _done(self) -> Events:
        return [
            openai.ReasoningTextDone(
                output_index=self.output_index, item_id=self.id, content_index=0, text=self.text
            ),
            openai.ContentPartDone(
                output_index=self.output_index,
                item_id=self.id,
                content_index=0,
                part=ReasoningPart(self.text),
            ),
        ]


class OpenSummary(OpenReasoning):
    """Reasoning, in the summary of its item."""

    def item(self, text: str, status: openai.ItemStatus) -> openai.ReasoningOutput:
        return openai.ReasoningOutput(
            id=self.id,
            status=status,
            summary=[] if status == "in_progress" else [SummaryPart(text)],
            encrypted_content=self._encrypted(text, status),
        )

    def begin(self) -> Events:
        return [
            *OpenItem.begin(self),
            openai.ReasoningSummaryPartAdded(
                output_index=self.output_index,
                item_id=self.id,
                summary_index=0,
                part=SummaryPart(""),
            ),
        ]

    def _more(self, text: str) -> Events:
        return [
            openai.ReasoningSummaryTextDelta(
                output_index=self.output_index, item_id=self.id, summary_index=0, delta=text
            )
        ]

    def _done(self) -> Events:
        return [
            openai.ReasoningSummaryTextDone(
                output_index=self.output_index, item_id=self.id, summary_index=0, text=self.text
            ),
            openai.ReasoningSummaryPartDone(
                output_index=self.output_index,
                item_id=self.id,
                summary_index=0,
                part=SummaryPart(self.text),
            ),
        ]


class OpenFunctionCall(OpenItem):
    """A tool call: a function with its arguments.

    Args:
        call_id: The id of the call.
        name: The name of the function.
        namespace: Its namespace, if it has one.
    """

    def __init__(
        self,
        item_id: str,
        output_index: int,
        call_id: str,
        name: str,
        namespace: str | UnsetType = UNSET,
    ) -> None:
        super().__init__(item_id, output_index)
        self._call_id = call_id
        self._name = name
        self._namespace = namespace

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

    def _done(self) -> Events:
        return [
            openai.FunctionCallArgumentsDone(
                output_index=self.output_index,
                item_id=self.id,
                name=self._name,
                arguments=self.text,
            )
        ]


class OpenCustomCall(OpenItem):
    """A call of a custom tool. The text that is added is that of the function's arguments.

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
        namespace: str | UnsetType = UNSET,
    ) -> None:
        super().__init__(item_id, output_index)
        self._call_id = call_id
        self._name = name
        self._namespace = namespace
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

    def _done(self) -> Events:
        return [
            *super().add(self._input.finish()),
            openai.CustomToolCallInputDone(
                output_index=self.output_index, item_id=self.id, input=self.text
            ),
        ]
