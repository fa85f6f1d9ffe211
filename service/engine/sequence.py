"""An answer in the making: its tokens so far, how many the model has read, the cache it holds."""

import secrets
from collections.abc import Iterable
from enum import Enum
from hashlib import blake2b

from service.domain.engine import FinishReason, Request, TokenLogprobs
from service.engine.grammar_state import GrammarState
from service.engine.speculation import PromptLookup
from service.engine.token_rules import TokenRules


class SequenceStatus(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """One of a request's `n` answers, in the engine.

    `request_id` grows in the order of arrival, `index` tells the request's sequences apart. The
    first of them computes the prompt, while the `followers` wait for it.

    `token_ids` is the prompt and, behind it, what has been generated. The keys and values of the
    first `num_computed_tokens` of them are in the cache, in the blocks `block_ids`. A running
    sequence catches up: prefill, a chunk of it, and recomputation after a preemption are all
    `num_uncomputed_tokens > 1`; decode is 1.

    `num_cached_tokens` of the prompt were in the cache already when the sequence was first
    admitted; None before that. What it finds there again after a preemption is no saving of its
    caller's and not counted. `prefix_hashes[n]` is what its first n blocks are known by in the
    prefix cache, as far as anybody has asked. `lookup` guesses at what comes next.

    `rules` and `grammar` say which tokens may come: None where the request does not.
    `prompt_logprobs` fills while the prompt is computed: None where they are not asked for, and
    when they have been told.
    """

    __slots__ = (
        "_draw_key",
        "block_ids",
        "finish_reason",
        "followers",
        "grammar",
        "index",
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
        """The prompt must be shorter than `max_model_len`, which admission has checked."""
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
        """The order among the sequences of one caller: by priority, then by arrival."""
        return self.request.priority, self.request_id, self.index

    @property
    def arrival(self) -> tuple[int, int]:
        """The order of arrival among all sequences."""
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
        """The positions of the prompt behind which log probabilities are still to be found."""
        if self.prompt_logprobs is None:
            return range(0)
        return range(len(self.prompt_logprobs), self.num_prompt_tokens - 1)

    def draw(self, position: int) -> float:
        """The uniform draw from [0, 1) that decides the answer's token at `position`.

        It depends on the seed and on nothing else, so neither drafts nor neighbours nor a
        preemption change an answer: the generator has no state, it is a keyed hash of a counter.
        """
        digest = blake2b(position.to_bytes(8, "little"), key=self._draw_key, digest_size=8).digest()
        return (int.from_bytes(digest, "little") >> 11) * 2.0**-53  # as many bits as a float has

    def extend(self, token_ids: Iterable[int]) -> int:
        """Add generated tokens up to the one that finishes; return how many."""
        num_before = self.num_tokens
        for token_id in token_ids:
            self.append(token_id)
            if self.finish_reason is not None:
                break
        return self.num_tokens - num_before

    def append(self, token_id: int) -> None:
        """Add a generated token, and finish if it is the last."""
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
        """Finish without another token: there is none that may come."""
        self.finish_reason = FinishReason.STOP
