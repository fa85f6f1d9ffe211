"""Compares measured speeds with the limits of the machine: its bytes and its operations a second.

The counts are lower bounds of what a server must do, the same for all servers but for the bytes of
their weights. A share above 1 is possible if drafts are accepted, since a step then gives several
tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.results import Limits, ModelFacts, ServerFacts


@dataclass(frozen=True, slots=True)
class Shares:
    """The least time for the bytes, and for the operations, as shares of the measured time."""

    of_bytes: float
    of_operations: float

    @property
    def text(self) -> str:
        """The limit that is closer, and its share."""
        if self.of_bytes > self.of_operations:
            return f"bytes {self.of_bytes:.0%}"
        return f"arithmetic {self.of_operations:.0%}"


class Roofline:
    """The limits of a machine for one server and model."""

    def __init__(self, limits: Limits, model: ModelFacts, server: ServerFacts) -> None:
        self._model = model
        self._weight_bytes = server.weight_bytes or 0
        self._bytes_per_s = limits.read_gb_s * 1e9
        self._operations_per_s = limits.tops[server.arithmetic] * 1e12

    def decode_step(self, figures: Mapping[str, float]) -> float:
        """Return the share of the limit of bytes that a step of one client reaches.

        A step reads the weights, and the keys and values of the context.
        """
        context = figures["num_prompt_tokens"] + self._tokens_of_each(figures) / 2
        read = self._weight_bytes + context * self._model.kv_bytes_per_token
        return read / self._bytes_per_s / (figures["tpot_ms.p50"] / 1000)

    def prefill(self, figures: Mapping[str, float]) -> float:
        """Return the share of the limit of operations that the prompt of one client reaches.

        The time is that to the first token, with the time of HTTP and of the tokenizer.
        """
        done = self._operations(self._new_prompt_tokens(figures), 1)
        return done / self._operations_per_s / (figures["ttft_ms.p50"] / 1000)

    def load(self, figures: Mapping[str, float]) -> Shares:
        """Return the shares of a closed loop. Weights are read once for each token of a client."""
        num_outputs, num_each = figures["num_output_tokens"], self._tokens_of_each(figures)
        clients = min(figures["num_clients"], figures["num_requests"])
        context = figures["num_prompt_tokens"] + num_each / 2
        read = num_outputs / clients * self._weight_bytes
        read += num_outputs * context * self._model.kv_bytes_per_token
        done = figures["num_requests"] * self._operations(
            self._new_prompt_tokens(figures) + num_each, num_each
        )
        duration_s = figures["duration_s"]
        return Shares(
            read / self._bytes_per_s / duration_s, done / self._operations_per_s / duration_s
        )

    def _operations(self, num_tokens: float, num_outputs: float) -> float:
        """Return the operations of a sequence of `num_tokens` tokens."""
        model = self._model
        weights = num_tokens * model.num_layer_weights + num_outputs * model.num_head_weights
        positions = num_tokens**2 / 2
        return 2 * weights + positions * model.attention_operations_per_position

    def _new_prompt_tokens(self, figures: Mapping[str, float]) -> float:
        return figures["num_prompt_tokens"] - figures["num_cached_tokens"]

    def _tokens_of_each(self, figures: Mapping[str, float]) -> float:
        return figures["num_output_tokens"] / figures["num_requests"]
