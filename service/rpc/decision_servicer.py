"""DecisionService: questions about a conversation, answered by probabilities."""

from chatrpc.v1 import decision_service_pb2, decision_service_pb2_grpc
from service.deadline import deadline_scope
from service.domain.backend import CallContext, Prompt
from service.domain.engine import EngineTimings
from service.errors import MissingField, UnsupportedMethod
from service.rpc.calls.caller import current_caller, note_prompts, note_timings, received_bytes
from service.rpc.calls.context import Context
from service.rpc.calls.deadline import deadline_of
from service.rpc.calls.work_pools import WorkPools
from service.rpc.decode.decisions import decision_request, num_options
from service.rpc.decode.options import priority
from service.rpc.encode.decisions import decision_response
from service.rpc.serving.lifecycle import Lifecycle

# Larger requests are decoded, and responses with more options encoded, off the event loop.
_MAX_DECODED_BYTES_ON_LOOP = 64 << 10
_MAX_ENCODED_OPTIONS_ON_LOOP = 500

# Maximum number of sequences of one call that run at a time. A call has up to 102 000 options.
_MAX_SEQUENCES = 8


class DecisionServicer(decision_service_pb2_grpc.DecisionServiceServicer):
    """Answers questions with the models of `lifecycle` that have a decision backend.

    Args:
        pools: Threads for work that would block the event loop.
        request_timeout_s: Maximum duration of a request in seconds, even if its deadline is later.
    """

    def __init__(self, lifecycle: Lifecycle, pools: WorkPools, request_timeout_s: float) -> None:
        self._lifecycle = lifecycle
        self._pools = pools
        self._request_timeout_s = request_timeout_s

    async def CreateDecision(
        self, request: decision_service_pb2.CreateDecisionRequest, context: Context
    ) -> decision_service_pb2.CreateDecisionResponse:
        if not request.model:
            raise MissingField("model")
        deadline = deadline_of(context, self._request_timeout_s)
        model = self._lifecycle.admit(request.model, context)
        if model.decisions is None:
            raise UnsupportedMethod("CreateDecision", model.card.id)
        caller, spec = current_caller(), model.backend.spec
        call = CallContext(caller, deadline, priority(request, caller), self._pools)
        num_sequences = max(1, min(_MAX_SEQUENCES, spec.max_sequences, num_options(request)))
        with model.backend.reserve(caller, num_sequences):
            async with deadline_scope(deadline):
                if received_bytes() > _MAX_DECODED_BYTES_ON_LOOP:
                    decoded = await self._pools.text(decision_request, request, spec)
                else:
                    decoded = decision_request(request, spec)
            prompts = [Prompt()] * len(decoded.questions)
            note_prompts(prompts, 1, 1)

            def note(index: int, num_prompt_tokens: int, timings: EngineTimings) -> None:
                prompts[index] = Prompt(num_tokens=num_prompt_tokens)
                note_timings(index, timings)

            scored = await model.decisions.decide(decoded, call, num_sequences, note)
        if sum(len(each.options) for each in scored) > _MAX_ENCODED_OPTIONS_ON_LOOP:
            return await self._pools.text(decision_response, request, decoded, scored, model.card)
        return decision_response(request, decoded, scored, model.card)
