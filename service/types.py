"""What the layers hand to one another: plain values, parsed at the edge and trusted inside."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol


class FinishReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"  # of an answer; an engine knows nothing of calls


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when generation ends.

    The values here are OpenAI's defaults and the only place where a default is written; the model's
    `generation_config` replaces them at start, a request's own fields replace those.
    """

    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None  # None: all that the context leaves
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # by token id
    min_tokens: int = 0
    allowed_token_ids: frozenset[int] | None = None  # None: all
    bad_words: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True

    @property
    def is_greedy(self) -> bool:
        """Whether only the most likely token can be chosen; under 1e-5 logits overflow."""
        return self.temperature < 1e-5 or self.top_k == 1 or self.top_p == 0.0


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function call that an assistant message of the conversation made."""

    id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation, its text parts joined."""

    role: str  # system, developer, user, assistant or tool
    content: str | None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning_content: str | None = None


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """How a conversation becomes a prompt."""

    template_kwargs: dict[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False  # the prompt ends inside the last message
    truncate_prompt_tokens: int | None = None  # keep the last so many; None: all
    tools: tuple[dict[str, Any], ...] = ()  # as templates read them: as in OpenAI's API


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `index` is its place in the request."""

    index: int
    name: str
    description: str
    schema: str  # a JSON schema for the arguments; empty where the request gives none
    is_strict: bool = False


class ToolMode(Enum):
    """Whether an answer calls functions."""

    AUTO = "auto"  # the model decides
    REQUIRED = "required"
    NAMED = "named"  # exactly one call, of the one tool there is


class JsonLayout(Enum):
    """Where generated JSON may have white space."""

    # One space, or a line break and the next line's indentation. Nothing else: a small model that
    # may write blank lines writes nothing else until it runs into its limit.
    FLEXIBLE = "flexible"
    COMPACT = "compact"  # nowhere


class AnswerForm(Enum):
    """The kinds of forms that an answer can be made to take."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"
    CHOICE = "choice"


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """The form that an answer must take."""

    form: AnswerForm
    text: str = ""  # the schema, the expression or the grammar
    is_strict: bool = False  # the schema is followed exactly, or rejected
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion as the wire asked for it, checked, with the model's defaults filled in.

    `tools` are those that may be called, whatever others the wire held.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: SamplingParams
    prompt: PromptOptions
    cache_salt: str = ""
    n: int = 1
    num_logprobs: int | None = None  # as in `Request`
    num_prompt_logprobs: int | None = None
    returns_token_ids: bool = False
    tools: tuple[Tool, ...] = ()
    tool_mode: ToolMode = ToolMode.AUTO
    has_parallel_calls: bool = True
    response_format: ResponseFormat | None = None


class Matcher(Protocol):
    """Where one answer stands in the grammar that it must follow.

    One thread at a time uses it, not always the same. While it computes, others should have the
    interpreter: the model's next step is under way. What it raises ends its own request.
    """

    def allowed_tokens(self) -> bytes:
        """A bit for each token id that may come next, the lowest bit of the first byte for 0.

        Where the grammar is fulfilled, the tokens that end the answer are among them. Behind such a
        token there is none, and where there is none the answer ends.
        """
        ...

    def forced_tokens(self) -> tuple[int, ...]:
        """What must come next, as far as there is no choice; it may be nothing.

        A guess will do: it saves time where `allowed_tokens` agrees, and changes no answer.
        """
        ...

    def advance(self, token_id: int) -> None:
        """Take in a token that `allowed_tokens` allows."""
        ...

    def ahead(self) -> "Matcher":
        """A matcher at the same place, to look ahead with: this one does not hear of it.

        It raises where this one would have to give up: what is only guessed ends no answer.
        """
        ...


class Constraint(Protocol):
    """A compiled grammar. Immutable, and shared by the requests that ask for the same."""

    def matcher(self) -> Matcher:
        """A matcher at the start of an answer."""
        ...


class AnswerConstraint(Constraint, Protocol):
    """A constraint of one request, which can turn out to cost too much to be followed further."""

    failure: str | None  # why, once that has happened: the answer was ended for it

    def is_fulfilled(self, token_ids: Sequence[int]) -> bool:
        """Whether an answer of these tokens, without its end, is whole."""
        ...

    def after(self, text: str) -> "AnswerConstraint":
        """Return the constraint of what follows `text`, with which the answer begins.

        Raises:
            InvalidGrammar: no answer begins so.
        """
        ...


class Grammars(Protocol):
    """Compiles grammars for one model's tokens. Safe to call from any thread."""

    def control_token_id(self, text: str) -> int | None:
        """The id of the token that a grammar can name by it alone; None where `text` is text.

        Among them are special tokens, and others that look like one, `<tool_call>` say.
        """
        ...

    def compile(self, grammar: str) -> AnswerConstraint:
        """The grammar, in llguidance's notation, compiled or from the cache.

        Raises:
            InvalidGrammar: it is malformed, cannot be fulfilled or takes too much to compile.
        """
        ...

    def cached(self, grammar: str) -> AnswerConstraint | None:
        """Return the grammar if it has been compiled, without any wait. None: it has not been.

        Raises:
            InvalidGrammar: it could not be compiled.
        """
        ...


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request, as scheduling and caching know it.

    Requests of one caller wait behind one another; different callers take turns.

    Attributes:
        name: Identifies the caller. Empty for requests without an identity, which share one queue.
        weight: Number of turns that the caller gets in a round; at least 1.
        cache_namespace: Only callers with an equal namespace share cached prompt prefixes.
        min_priority: The lowest value, so the most urgent one, that its requests may set as
            `priority`.
    """

    name: str = ""
    weight: int = 1
    cache_namespace: str = ""
    min_priority: int = -(2**31)


@dataclass(slots=True)
class RequestTimes:
    """When a request got how far, of `time.monotonic()`, in seconds; None: not so far yet.

    The engine writes it, the first three once and the others with each token, and whoever has asked
    may read it.
    """

    queued_s: float | None = None
    scheduled_s: float | None = None  # the first of its sequences
    first_token_s: float | None = None
    last_token_s: float | None = None
    num_tokens: int = 0  # generated, of all its sequences


@dataclass(frozen=True, slots=True)
class Request:
    """What an engine is asked: token ids in.

    `sampling.max_tokens` may be None or too large: the engine clamps it to what the context leaves.
    `stop_token_ids` holds every token that ends the sequence, the model's own included.
    `deadline` is a time of `time.monotonic()`, in seconds; a request still waiting then is dropped.
    What is cached of a prompt is shared among requests with an equal `cache_salt` alone.
    `n` sequences are generated from one computation of the prompt, that of index `i` with draws of
    its own, by the seed and `i`. Requests with a lower `priority` are admitted first and preempted
    last.
    `num_logprobs` and `num_prompt_logprobs`: how many of the likeliest tokens to tell at each place
    beside the one that stands there; None: no log probabilities at all.
    `bad_token_sequences`, none of them empty, are never generated. `constraint` is the grammar of
    the answer. `times` is where the engine notes how far it has come with the request.

    What may come and how likely it is goes by vLLM's order: allowed tokens, bad sequences, the
    constraint and `min_tokens`, then bias, penalties, temperature, min-p, top-k and top-p. Log
    probabilities are those of the model itself, before any of it.
    """

    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    stop_token_ids: frozenset[int] = frozenset()
    deadline: float | None = None
    cache_salt: str = ""
    n: int = 1
    priority: int = 0
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    bad_token_sequences: tuple[tuple[int, ...], ...] = ()
    constraint: Constraint | None = None
    caller: Caller = Caller()
    times: RequestTimes = field(default_factory=RequestTimes, compare=False)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token's log probability (natural, before temperature), and its likeliest rivals'.

    `top` is in falling order, the lower token id first among equals.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """What an engine answers: the next token ids of a sequence, and why it ended if it did.

    Where `finish_reason` is STOP the last of `token_ids` is a stop token, or there are none: then
    nothing was left that may come.

    `index` says which of the request's `n` sequences. `num_cached_tokens` of the prompt came from
    the prefix cache; every output with a token says so. `logprobs` has one for each of `token_ids`
    where they were asked for; `prompt_logprobs`, one for each token of the prompt but the first,
    comes with the first output of sequence 0.
    """

    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    index: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()

    def merged_with(self, later: "TokenOutput") -> "TokenOutput":
        """This output and the one that follows it, as one."""
        return TokenOutput(
            self.token_ids + later.token_ids,
            later.finish_reason,
            later.num_cached_tokens,
            self.index,
            self.logprobs + later.logprobs,
            self.prompt_logprobs,
        )


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine's load, as of its last step."""

    max_num_seqs: int = 0  # the most that run at once
    num_running: int = 0
    num_waiting: int = 0
    num_kv_blocks: int = 0
    kv_block_size: int = 0  # tokens in a block
    num_free_kv_blocks: int = 0  # held by no sequence, whether they are cached or not
    # Since start:
    num_preemptions: int = 0
    num_steps: int = 0
    num_failed_steps: int = 0
    num_prefix_cache_queries: int = 0  # tokens of prompts that were looked for in the cache
    num_prefix_cache_hits: int = 0  # those of them that were found
    num_draft_tokens: int = 0  # guessed for the model to check
    num_accepted_tokens: int = 0  # those of them that were right


class Engine(Protocol):
    """Token ids in, token ids out. Text, templates and stop strings live above it."""

    @property
    def max_model_len(self) -> int:
        """The longest sequence served, prompt and answer together, in tokens. Known after start."""
        ...

    async def start(self) -> None:
        """Load the model and get ready to generate.

        Raises:
            ModelLoadError: the model cannot be served.
        """
        ...

    @property
    def max_request_sequences(self) -> int:
        """The most sequences that one request can have, all its prompts together."""
        ...

    def reserve(self, caller: Caller, num_sequences: int) -> AbstractContextManager[None]:
        """Hold places in the queue, while in the context, for a request that is being prepared.

        So a request that has no room is refused before any work is done on it, and requests that
        are being prepared count like those that wait.

        Raises:
            QueueFull: The queue is full, or the caller has its share of it.
            EngineDead: The engine has failed.
        """
        ...

    def generate(
        self, request: Request, *, is_reserved: bool = False
    ) -> AsyncGenerator[TokenOutput, int | None]:
        """Run the sequences of one request to their ends.

        `is_reserved` says that a reservation is held for them; otherwise they take places here.

        The first item is empty and says that the request has been admitted; every later one holds
        at least one token or the finish reason of one sequence, several tokens where the consumer
        is slow. Sending the index of a sequence ends that one, and nothing more is heard of it.
        Closing the generator aborts the request and frees what it held.

        Raises, at the first item:
            ContextLengthExceeded, QueueFull, DeadlinePassed: the request is refused.
        Raises, later:
            DeadlinePassed: the deadline passed while a sequence waited for its turn.
            StepFailed: the engine has failed over this request, and goes on without it.
            EngineDead: the engine has failed.
        """
        ...

    def stats(self) -> EngineStats: ...

    async def wait_dead(self) -> None:
        """Return when the engine has failed. Never returns for one that is well or was stopped."""
        ...

    async def stop(self) -> bool:
        """Fail what still runs and free the model; whether the engine was well to the end."""
        ...


class Tokenizer(Protocol):
    """What this service needs of a tokenizer. Implementations are safe to call from any thread."""

    @property
    def vocab_size(self) -> int:
        """The number of token ids, added tokens included."""
        ...

    @property
    def max_token_chars(self) -> int:
        """No token stands for more characters of a text than this."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for in the middle of a text: pieces of UTF-8, whole or not.

        Of a special token it is its name. An id outside the vocabulary has no bytes.
        """
        ...

    def special_token_id(self, text: str) -> int | None:
        """The id of the special token written so; None if there is none."""
        ...

    def render_chat(self, messages: list[dict[str, Any]], options: PromptOptions) -> str:
        """The conversation through the model's chat template.

        Raises:
            TemplateRefused: the template refuses the conversation.
        """
        ...


class ToolFormat(Enum):
    """How a model writes calls of functions."""

    HERMES = "hermes"
    LLAMA3_JSON = "llama3_json"
    MISTRAL = "mistral"
    MISTRAL_ARGS = "mistral_args"
    GEMMA = "gemma"
    GEMMA4 = "gemma4"
    JSON = "json"


class ReasoningFormat(Enum):
    """How a model marks what it thinks before it answers."""

    NONE = "none"
    THINK = "think"
    MISTRAL = "mistral"


@dataclass(frozen=True, slots=True)
class ChatFormats:
    """What a model writes beside plain text, and whether its template shows it tools."""

    tools: ToolFormat = ToolFormat.HERMES
    has_tool_template: bool = False
    reasoning: ReasoningFormat = ReasoningFormat.NONE


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the service says about a model."""

    id: str
    aliases: tuple[str, ...]
    created: int  # Unix time, seconds
    owned_by: str
    root: str
    max_model_len: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model ready to answer."""

    card: ModelCard
    tokenizer: Tokenizer
    engine: Engine
    sampling_defaults: SamplingParams
    eos_token_ids: frozenset[int]
    vocab_size: int  # of the model: tokenizers may have more tokens than it knows
    formats: ChatFormats = ChatFormats()
    grammars: Grammars | None = None  # None: the tokenizer is of a kind that has none
    json_layout: JsonLayout = JsonLayout.FLEXIBLE
