"""What gRPC is told to do with a channel's calls: which replica takes one, and when another may.

All of it is gRPC's own doing, by the names of its service config:
https://github.com/grpc/grpc/blob/master/doc/service_config.md.
"""

import json
import os
from dataclasses import dataclass
from typing import Any, Literal

Balance = Literal["round_robin", "weighted_round_robin", "ring_hash"]

AFFINITY_KEY = "x-affinity"
"""The metadata that `ring_hash` places a call by; without it, a call goes to any replica."""

# Replicas of one load: those with few places and those with many, those that were given the long
# answers and those that were not.
DEFAULT_BALANCE: Balance = "weighted_round_robin"

_POLICIES: dict[Balance, dict[str, Any]] = {
    "round_robin": {"round_robin": {}},
    "weighted_round_robin": {
        "weighted_round_robin": {
            # Out of band: a load that came with an answer's end would come when it is over.
            "enableOobLoadReport": True,
            "oobReportingPeriod": "1s",
            "weightUpdatePeriod": "0.5s",
            # How long a replica must have reported before it is believed, and is believed after.
            "blackoutPeriod": "1s",
            "weightExpirationPeriod": "10s",
        }
    },
    "ring_hash": {
        "ring_hash_experimental": {
            "requestHashHeader": AFFINITY_KEY,
            "minRingSize": 1024,  # of few replicas, each has about its share of the keys
        }
    },
}
# Read by gRPC when it parses a config: it ignores `requestHashHeader` otherwise.
_REQUEST_HASH_FLAG = "GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY"

_METHODS = {
    "name": [
        {"service": "chatrpc.v1.ChatService"},
        {"service": "chatrpc.v1.CompletionService"},
        {"service": "chatrpc.v1.ModelService"},
    ],
    # UNAVAILABLE is one replica's answer: try again, where that can be another. CANCELLED is one's
    # end: its server has stopped with the call on the wire. (A call that is cancelled on this side
    # ends here, and is over.) gRPC does so as long as nothing has come back, which a service that
    # waits for the first token sees to.
    "retryPolicy": {
        "maxAttempts": 3,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
    },
}
# A replica that dies takes its whole queue along, and all of that is worth another try: 500
# failures in a row. Where more calls fail than succeed for longer, retries would only add to the
# load, and they stop.
_THROTTLING = {"maxTokens": 1000, "tokenRatio": 1}


@dataclass(frozen=True)
class OutlierDetection:
    """When a replica whose calls fail is left out for a while; the names are gRPC's own.

    Whatever is not OK counts as a failure, the callers' own mistakes too.
    """

    interval_s: float
    failure_percentage: int
    request_volume: int
    minimum_hosts: int
    base_ejection_time_s: float
    max_ejection_percent: int


def service_config(
    balance: Balance, health_name: str, outliers: OutlierDetection | None = None
) -> str:
    """The service config, as JSON. Replicas that do not serve `health_name` get no calls."""
    if balance == "ring_hash":
        os.environ[_REQUEST_HASH_FLAG] = "true"
    policy = _POLICIES[balance]
    if outliers is not None:
        policy = _outlier_detection(outliers, policy)
    config = {
        "methodConfig": [_METHODS],
        "retryThrottling": _THROTTLING,
        "healthCheckConfig": {"serviceName": health_name},
        "loadBalancingConfig": [policy],
    }
    return json.dumps(config)


def _outlier_detection(outliers: OutlierDetection, policy: dict[str, Any]) -> dict[str, Any]:
    return {
        "outlier_detection_experimental": {
            "interval": f"{outliers.interval_s:.3f}s",
            "baseEjectionTime": f"{outliers.base_ejection_time_s:.3f}s",
            "maxEjectionPercent": outliers.max_ejection_percent,
            "failurePercentageEjection": {
                "threshold": outliers.failure_percentage,
                "minimumHosts": outliers.minimum_hosts,
                "requestVolume": outliers.request_volume,
            },
            "childPolicy": [policy],
        }
    }
