"""The service config of a channel: how gRPC balances calls over replicas and retries them.

https://github.com/grpc/grpc/blob/master/doc/service_config.md documents its fields.
"""

import json
import os
from dataclasses import dataclass
from typing import Any, Literal

from gateway_http.upstream.rpcs import RPCS

Balance = Literal["round_robin", "weighted_round_robin", "ring_hash"]

AFFINITY_KEY = "x-affinity"
"""The metadata key by which `ring_hash` chooses a replica. Calls without it go to any replica."""

# This policy gives all replicas the same load, even if they differ in size or in the lengths of
# their completions.
DEFAULT_BALANCE: Balance = "weighted_round_robin"

_POLICIES: dict[Balance, dict[str, Any]] = {
    "round_robin": {"round_robin": {}},
    "weighted_round_robin": {
        "weighted_round_robin": {
            # A load that is reported only at the end of a response would be out of date.
            "enableOobLoadReport": True,
            "oobReportingPeriod": "1s",
            "weightUpdatePeriod": "0.5s",
            # Reports are used after `blackoutPeriod`, and expire after `weightExpirationPeriod`.
            "blackoutPeriod": "1s",
            "weightExpirationPeriod": "10s",
        }
    },
    "ring_hash": {
        "ring_hash_experimental": {
            "requestHashHeader": AFFINITY_KEY,
            "minRingSize": 1024,  # large enough that a few replicas get about equal shares
        }
    },
}
# gRPC ignores `requestHashHeader` unless this environment variable is set when it parses a config.
_REQUEST_HASH_FLAG = "GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY"

_METHODS = {
    "name": [{"service": rpc.service, "method": rpc.method} for rpc in RPCS if rpc.is_retryable],
    # UNAVAILABLE: this replica rejects the call, and another may take it. CANCELLED: the replica's
    # server stopped during the call. (A call that is cancelled here is over and not retried.) gRPC
    # retries only while nothing has been received; the service sends nothing before the first
    # token.
    "retryPolicy": {
        "maxAttempts": 3,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
    },
}
# If a replica dies, its whole queue fails and should be retried: up to 500 failures in a row are
# retried. If more calls fail than succeed after that, retries would only add load, so they stop.
_THROTTLING = {"maxTokens": 1000, "tokenRatio": 1}


@dataclass(frozen=True)
class OutlierDetection:
    """The conditions under which a failing replica gets no calls for a while.

    The fields have gRPC's names.

    Every status but OK counts as a failure, including those of invalid requests.
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
    """Return the service config as JSON. Replicas that do not serve `health_name` get no calls."""
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
