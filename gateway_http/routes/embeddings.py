"""POST /v1/embeddings."""

from gateway_http.convert import embeddings
from gateway_http.protocol.decode import decoder
from gateway_http.protocol.embeddings import EmbeddingsRequest
from gateway_http.routes.computation import Computation
from gateway_http.upstream.rpcs import CREATE_EMBEDDINGS

create_embeddings = Computation(
    rpc=CREATE_EMBEDDINGS,
    decode=decoder(EmbeddingsRequest),
    message=embeddings.embeddings_request,
    names=embeddings.sent_names,
    response=embeddings.embeddings_response,
)
