"""POST /v1/decisions."""

from chatrpc.v1 import decision_service_pb2
from gateway_http.convert import decisions
from gateway_http.protocol.decisions import DecisionRequest
from gateway_http.protocol.decode import decoder
from gateway_http.routes.computation import Computation
from gateway_http.upstream.rpcs import CREATE_DECISION


def _input_bytes(request: decision_service_pb2.CreateDecisionRequest, num_bytes: int) -> int:
    """Return the size of all prompts: each question's has the whole input."""
    num_repeated = max(0, len(request.questions) - 1)
    return num_bytes + num_repeated * sum(message.ByteSize() for message in request.messages)


create_decision = Computation(
    rpc=CREATE_DECISION,
    decode=decoder(DecisionRequest),
    message=decisions.decision_request,
    names=decisions.sent_names,
    response=decisions.decision_response,
    input_bytes=_input_bytes,
)
