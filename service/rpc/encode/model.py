"""Converts a model's card to a protobuf message."""

from google.protobuf.timestamp_pb2 import Timestamp

from chatrpc.v1 import model_service_pb2
from service.domain.model import ModelCard


def model_proto(card: ModelCard) -> model_service_pb2.Model:
    """Return the description of a model for clients."""
    return model_service_pb2.Model(
        id=card.id,
        create_time=Timestamp(seconds=card.created),
        owned_by=card.owned_by,
        max_model_len=card.max_model_len,
        aliases=card.aliases,
        root=card.root,
    )
