"""A request that lives: its tokens so far, how many the model has read, the cache it holds."""

import secrets
from collections.abc import Iterable
from enum import Enum
from hashlib import blake2b

from service.engine.speculation import PromptLookup
from service.types import FinishReason, Request


class SequenceStatus(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """One request in the engine.

    `token_ids` is the prompt and, behind it, what has been generated. The keys and values of the
    first `num_computed_tokens` of them are in the cache, in the blocks `block_ids`. A running
    sequence catches up: prefill, a chunk of it, and recomputation after a preemption are all
    `num_uncomputed_tokens > 1`; decode is 1.

    `num_cached_tokens` of the prompt were in the cache already when the sequence was first
    admitted; None before that. What it finds there again after a preemption is no saving of its
    caller's and not counted. `prefix_hashes[n]` is what its first n blocks are known by in the
    prefix cache, as far as anybody has asked. `lookup` guesses at what comes next.
    """

    __slots__ = (
        "_draw_key",
        "block_ids",
        "finish_reason",
        "id",
        "lookup",
        "max_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_prompt_tokens",
        "prefix_hashes",
        "request",
        "status",
        "token_ids",
    )

    def __init__(self, sequence_id: int, request: Request, max_model_len: int) -> None:
        """The prompt must be shorter than `max_model_len`, which admission has checked."""
        room = max_model_len - len(request.prompt_token_ids)
        wanted, seed = request.sampling.max_tokens, request.sampling.seed
        self.id = sequence_id
        self.request = request
        self.max_tokens = room if wanted is None else min(wanted, room)
        self.token_ids = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        self.num_cached_tokens: int | None = None
        self.block_ids: list[int] = []
        # By another function than those of the blocks, so that no salt can pass for a prefix.
        self.prefix_hashes = [blake2b(request.cache_salt.encode()).digest()]
        self.status = SequenceStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.lookup = PromptLookup()
        self._draw_key = secrets.token_bytes(16) if seed is None else str(seed).encode()

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

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
        if token_id in self.request.stop_token_ids:
            self.finish_reason = FinishReason.STOP
        elif self.num_output_tokens >= self.max_tokens:
            self.finish_reason = FinishReason.LENGTH
