# ruff: noqa: N815  # the names are those of NIM
"""The response of GET /v1/metadata, in the form of NVIDIA NIM.

https://docs.nvidia.com/nim/large-language-models/reference/api-reference/get-metadata
"""

from typing import Annotated

import msgspec
from msgspec import Struct

from gateway_http.protocol.field_notes import http_only


class DeployedModel(Struct):
    """A served model, in the form of NVIDIA NIM."""

    shortName: Annotated[str, http_only("The id of the model.")]
    modelUrl: Annotated[
        str, http_only("The origin of the weights, as `root`, or the id if it is unknown.")
    ]


class DeploymentMetadata(Struct):
    """The version of the gateway, and the models that the caller may use, in NIM's form."""

    version: Annotated[str, http_only("The version of the gateway.")]
    modelInfo: Annotated[list[DeployedModel], http_only("The models that the caller may use.")]
    assetInfo: Annotated[
        list[str], http_only("Always empty: there are no assets other than models.")
    ] = msgspec.field(default_factory=list)
