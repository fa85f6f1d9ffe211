"""The prompt of a question about a conversation, and the tokens of its options after the prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from service.domain.chat import Message, PromptOptions
from service.domain.decisions import Question, QuestionKind
from service.domain.model import LocalModel, Tokenizer
from service.errors import ContextLengthExceeded, InvalidField
from service.text.chat_template import encode_prompt
from service.text.prompt import prompt_text
from service.text.prompt_length import least_num_tokens
from service.text.reasoning import MARKERS, Thinking, thinking_after

# The options are scored as the begin of the response itself, so the model must not reason first.
_OPTIONS = PromptOptions(template_kwargs={"enable_thinking": False})

# Characters at the end of the prompt that are encoded together with an option. No token that
# reaches over the end of a prompt begins before them.
_NUM_BOUNDARY_CHARS = 64

_WORDS = {
    QuestionKind.PREDICATE: (
        "Is the following statement about the input above true?",
        "Answer with one word, True or False, and nothing else.",
    ),
    QuestionKind.CHOICE: (
        "Answer the following question about the input above.",
        "Answer with exactly one of these options and nothing else:",
    ),
    QuestionKind.SCORE: (
        "Rate the input above on a scale, by the following instructions.",
        "Answer with exactly one of these levels, the lowest first, and nothing else:",
    ),
}


@dataclass(frozen=True, slots=True)
class QuestionPrompt:
    """The tokens of a question's prompt, and those of its options.

    Attributes:
        forms: The forms of each option: each is a sequence of tokens after the prompt.
    """

    token_ids: tuple[int, ...]
    forms: tuple[tuple[tuple[int, ...], ...], ...]


def question_prompt(
    messages: Sequence[Message], question: Question, model: LocalModel
) -> QuestionPrompt:
    """Render and tokenize the prompt of a question. This takes long for a long conversation.

    Raises:
        TemplateRejected: The template rejects the conversation.
        ContextLengthExceeded: The prompt is too long.
        InvalidField: A token is not in the model's vocabulary, or an option has no token.
    """
    tokenizer, max_model_len = model.tokenizer, model.card.max_model_len
    text = prompt_text(_with_question(messages, question), (), _OPTIONS, model)
    markers = MARKERS.get(model.formats.reasoning)
    if markers is not None and thinking_after(text, markers) is Thinking.OPEN:
        text = f"{text.rstrip()}\n\n{markers.end}\n\n"
    if num_tokens := least_num_tokens(tokenizer, text, max_model_len):
        raise ContextLengthExceeded(num_tokens, max_model_len)
    token_ids = tuple(encode_prompt(tokenizer, text, _OPTIONS))
    boundary = _Boundary(text, tokenizer)
    forms = tuple(boundary.forms(option.text) for option in question.options)
    for i, each in enumerate(forms):
        if not all(each):
            raise InvalidField(f"{question.options_field}[{i}]", "has no token in this model.")
    longest = max(len(form) for each in forms for form in each)
    if len(token_ids) + longest > max_model_len:
        raise ContextLengthExceeded(len(token_ids) + longest, max_model_len)
    most = max(*token_ids, *(token for each in forms for form in each for token in form))
    if most >= model.vocab_size:
        raise InvalidField("messages", f"The token {most} is not in the model's vocabulary.")
    return QuestionPrompt(token_ids, forms)


def _with_question(messages: Sequence[Message], question: Question) -> list[Message]:
    """Return the conversation with the question at its end.

    The question is in the last message if that is the user's, because many chat templates reject
    two messages of the user in a row. It comes after the conversation, so that all questions of a
    request share the cached prefix.
    """
    *others, last = messages
    text = _question_text(question)
    if last.role != "user":
        return [*messages, Message("user", text)]
    return [*others, replace(last, content=f"{last.content}\n\n{text}")]


def _question_text(question: Question) -> str:
    task, answer = _WORDS[question.kind]
    lines = [task, "", question.instructions, "", answer]
    if question.kind is not QuestionKind.PREDICATE:
        lines += [
            f"- {option.text}: {option.description}" if option.description else f"- {option.text}"
            for option in question.options
        ]
    return "\n".join(lines)


class _Boundary:
    """The end of a prompt, which is encoded together with each option."""

    def __init__(self, prompt: str, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._text = prompt[-_NUM_BOUNDARY_CHARS:]
        self._token_ids = tokenizer.encode(self._text, add_special_tokens=False)

    def forms(self, option: str) -> tuple[tuple[int, ...], ...]:
        """Return the forms of an option after the prompt.

        If the prompt does not end with white space, the response may begin with a space, which is
        part of its first token. So there is a form with a space, too.
        """
        texts = [option] if self._text[-1:].isspace() else [option, f" {option}"]
        return tuple({tuple(self._token_ids_after(text)): None for text in texts})

    def _token_ids_after(self, text: str) -> list[int]:
        """Return the token ids of a text after the prompt.

        They are those of both together without those of the prompt. If the boundary is within a
        token, they are those of the text by itself, since the prompt's tokens are given.
        """
        of_both = self._tokenizer.encode(self._text + text, add_special_tokens=False)
        num_before = len(self._token_ids)
        if of_both[:num_before] == self._token_ids:
            return of_both[num_before:]
        return self._tokenizer.encode(text, add_special_tokens=False)
