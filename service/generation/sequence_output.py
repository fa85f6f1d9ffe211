"""Converts the engine's outputs of one sequence to text deltas."""

from dataclasses import replace

from service.domain.backend import DecodedLogprob, TextDelta
from service.domain.engine import FinishReason, TokenOutput
from service.domain.model import LocalModel
from service.errors import InvalidField
from service.generation.preparation import Preparation
from service.text.output_parser import OutputParser
from service.text.output_text import OutputText
from service.text.text_offsets import TextOffsets


class SequenceOutput:
    """The text of one sequence of a prompt.

    Args:
        prompt_index: Index of the prompt in the request.
    """

    def __init__(self, model: LocalModel, preparation: Preparation, prompt_index: int) -> None:
        request, completion = preparation.request, preparation.completion
        sampling = request.sampling
        self._preparation = preparation
        self._token_ids: list[int] = []
        self._is_scored_only = sampling.max_tokens == 0
        markers = preparation.output_format.shown_tokens
        has_all_logprobs = completion is not None
        text = OutputText(
            model.tokenizer,
            sampling,
            markers,
            has_all_logprobs=has_all_logprobs,
            prompt_index=prompt_index,
        )
        self._parser = OutputParser(preparation.output_format, text)
        self._offsets: TextOffsets | None = None
        if completion is not None and completion.num_logprobs is not None:
            prompt = preparation.prompts[prompt_index]
            self._offsets = TextOffsets(
                model.tokenizer,
                start=len(prompt.text) if completion.is_echoed else 0,
                skip_special_tokens=sampling.skip_special_tokens,
            )

    def push(self, output: TokenOutput) -> list[TextDelta]:
        """Return the deltas of an output. A delta with a finish reason is the sequence's last.

        Raises:
            InvalidField: The output ended because its grammar cannot be followed any further.
        """
        if self._is_scored_only:
            output = replace(output, token_ids=(), finish_reason=FinishReason.LENGTH, logprobs=())
        self._token_ids += output.token_ids
        deltas = self._parser.push(output)
        if deltas[-1].finish_reason is not None:
            self._check_constraint(output)
        if self._offsets is not None:
            for delta in deltas:
                delta.text_offsets = tuple(self._offsets.push(delta.token_ids))
        return deltas

    def _check_constraint(self, last: TokenOutput) -> None:
        """Raise InvalidField if the output does not follow its grammar to the end."""
        constraint = self._preparation.constraint
        if constraint is None:
            return
        reason = constraint.failure
        if last.finish_reason is FinishReason.STOP and not last.token_ids and reason is None:
            # The grammar allows only tokens that other options forbid, such as bad words.
            if constraint.is_fulfilled(self._token_ids):
                return
            reason = "the request's other options leave no token that may follow"
        if reason is not None:
            field = self._preparation.constrained_field
            raise InvalidField(field, f"This format cannot be enforced: {reason}")


def first_prompt_logprob(model: LocalModel, token_id: int) -> DecodedLogprob:
    """Return the entry of a prompt's first token, which has no log probability."""
    return DecodedLogprob(model.tokenizer.token_bytes(token_id), None, token_id)
