"""DecisionService: questions about a conversation, answered by probabilities."""

from chatrpc.v1 import decision_service_pb2, decision_service_pb2_grpc
from service.domain.backend import ModelSpec, Prompt
from service.domain.engine import EngineTimings
from service.rpc.calls.caller import note_prompts, note_timings
from service.rpc.calls.context import Context
from service.rpc.decode.decisions import decision_request, num_options
from service.rpc.encode.decisions import decision_response
from service.rpc.pooling_calls import PoolingCalls

# An option of a response counts as this many numbers for `PoolingCall.encode`.
_NUMBERS_PER_OPTION = 100

# Maximum number of sequences of one call that run at a time. A call has up to 102 000 options.
_MAX_SEQUENCES = 8


class DecisionServicer(decision_service_pb2_grpc.DecisionServiceServicer):
    """Answers questions with the models that have a decision backend."""

    def __init__(self, calls: PoolingCalls) -> None:
        self._calls = calls

    async def CreateDecision(
        self, request: decision_service_pb2.CreateDecisionRequest, context: Context
    ) -> decision_service_pb2.CreateDecisionResponse:
        def num_sequences(spec: ModelSpec) -> int:
            return max(1, min(_MAX_SEQUENCES, spec.max_sequences, num_options(request)))

        async with self._calls.admitted(
            "CreateDecision", request, context, lambda model: model.decisions, num_sequences
        ) as (call, backend):
            spec = call.model.backend.spec
            decoded = await call.decode(decision_request, request, spec)
            prompts = [Prompt()] * len(decoded.questions)
            note_prompts(prompts, 1, 1)

            def note(index: int, num_prompt_tokens: int, timings: EngineTimings) -> None:
                prompts[index] = Prompt(num_tokens=num_prompt_tokens)
                note_timings(index, timings)

            scored = await backend.decide(decoded, call.context, num_sequences(spec), note)
        num_numbers = _NUMBERS_PER_OPTION * sum(len(each.options) for each in scored)
        return await call.encode(
            num_numbers, decision_response, request, decoded, scored, call.model.card
        )
