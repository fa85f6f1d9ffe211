"""A sequence of a request: its tokens, the number of computed ones, and its cache blocks."""

import secrets
from collections.abc import Iterable
from enum import Enum
from hashlib import blake2b

from service.domain.engine import FinishReason, Request, TokenLogprobs
from service.engine.grammar_state import GrammarState
from service.engine.speculation import PromptLookup
from service.engine.token_rules import TokenRules


class SequenceStatus(Enum):
    """The state of a sequence in the scheduler."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """A sequence of a request: the prompt and one of its `n` outputs.

    A sequence that decodes has one uncomputed token. A sequence has more of them during prefill,
    and in the same way while it is computed again after a preemption.

    Attributes:
        request_id: Increases in the order of arrival.
        index: Position among the request's sequences. Sequence 0 computes the prompt.
        followers: Sequences of the request that wait until this one has computed the prompt.
        token_ids: The prompt, then the generated tokens.
        num_computed_tokens: Number of tokens, from the start, whose keys and values are in the
            cache, in the blocks `block_ids`.
        num_cached_tokens: Number of prompt tokens found in the prefix cache, in memory and on
            disk, when the sequence was admitted for the first time. None before that.
        is_loading: True while blocks of the prefix are read from disk. The sequence runs, but no
            step computes its tokens.
        prefix_hashes: `prefix_hashes[n]` identifies the first n blocks in the prefix cache. Hashes
            are added when they are needed.
        lookup: The source of draft tokens.
        rules: The request's rules for tokens; None if it has none.
        grammar: The state of the request's constraint; None if it has none.
        prompt_logprobs: Log probabilities of the prompt tokens that are computed so far. None if
            they are not requested, and after they have been sent.
    """

    __slots__ = (
        "_draw_key",
        "block_ids",
        "finish_reason",
        "followers",
        "grammar",
        "index",
        "is_loading",
        "lookup",
        "max_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_prompt_tokens",
        "prefix_hashes",
        "prompt_logprobs",
        "request",
        "request_id",
        "rules",
        "status",
        "token_ids",
    )

    def __init__(
        self, request_id: int, request: Request, max_model_len: int, index: int = 0
    ) -> None:
        """Create a waiting sequence. The prompt is shorter than `max_model_len`; admission has
        checked it."""
        room = max_model_len - len(request.prompt_token_ids)
        wanted, seed = request.sampling.max_tokens, request.sampling.seed
        self.request_id = request_id
        self.index = index
        self.request = request
        self.followers: list[Sequence] = []
        self.max_tokens = room if wanted is None else min(wanted, room)
        self.token_ids = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        self.num_cached_tokens: int | None = None
        self.block_ids: list[int] = []
        self.is_loading = False
        self.prefix_hashes: list[bytes] = []
        self.status = SequenceStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.lookup = PromptLookup()
        self.rules = TokenRules.of(request)
        self.grammar = None if request.constraint is None else GrammarState(request)
        has_prompt_logprobs = index == 0 and request.num_prompt_logprobs is not None
        self.prompt_logprobs: list[TokenLogprobs] | None = [] if has_prompt_logprobs else None
        seed_of_index = f"{seed}/{index}" if index else f"{seed}"
        self._draw_key = secrets.token_bytes(16) if seed is None else seed_of_index.encode()

    @property
    def rank(self) -> tuple[int, int, int]:
        """Sort key among the sequences of one caller: priority, then order of arrival."""
        return self.request.priority, self.request_id, self.index

    @property
    def arrival(self) -> tuple[int, int]:
        """Sort key for the order of arrival among all sequences."""
        return self.request_id, self.index

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def positions_without_logprobs(self) -> range:
        """The prompt positions whose next token has no log probability yet."""
        if self.prompt_logprobs is None:
            return range(0)
        return range(len(self.prompt_logprobs), self.num_prompt_tokens - 1)

    def draw(self, position: int) -> float:
        """Return the uniform draw from [0, 1) for the output token at `position`.

        It is a keyed hash of the position and has no state. So drafts, preemptions and the other
        sequences of a batch do not change which token is sampled.
        """
        digest = blake2b(position.to_bytes(8, "little"), key=self._draw_key, digest_size=8).digest()
        return (
            int.from_bytes(digest, "little") >> 11
        ) * 2.0**-53  # 53 bits, the precision of a float

    def extend(self, token_ids: Iterable[int]) -> int:
        """Append generated tokens, up to the one that finishes the sequence.

        Returns:
            The number of tokens appended.
        """
        num_before = self.num_tokens
        for token_id in token_ids:
            self.append(token_id)
            if self.finish_reason is not None:
                break
        return self.num_tokens - num_before

    def append(self, token_id: int) -> None:
        """Append a generated token. Set `finish_reason` if it is the last one."""
        self.token_ids.append(token_id)
        if self.rules is not None:
            self.rules.append(token_id)
        if self.grammar is not None:
            self.grammar.append(token_id)
        if token_id in self.request.stop_token_ids:
            self.finish_reason = FinishReason.STOP
        elif self.num_output_tokens >= self.max_tokens:
            self.finish_reason = FinishReason.LENGTH

    def end(self) -> None:
        """Finish because no token is allowed next."""
        self.finish_reason = FinishReason.STOP
