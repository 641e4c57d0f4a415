"""Names of the scalars that training, evaluation, the simulator and the live server all report.

One name means one thing wherever it is written (TensorBoard, tables, JSON), so that a simulated and a live run can be
laid over each other. A name is `quantity_unit/part`.
"""

from __future__ import annotations

VIOLATION_HIGH = "violation_rate/high"  # late, dropped or failed over all offered that were not cancelled
VIOLATION_LOW = "violation_rate/low"
VIOLATION_ALL = "violation_rate/all"
GOODPUT_RPS = "goodput_rps"  # requests answered within their deadline, per second
OFFERED_RPS = "offered_rps"
THROUGHPUT_RPS = "throughput_rps"  # requests answered, late ones included, per second
LATENCY_P50_MS = "latency_ms/p50"  # arrival to answer, of requests that were answered
LATENCY_P99_MS = "latency_ms/p99"
LATENCY_HIGH_P50_MS = "latency_ms/high_p50"
LATENCY_HIGH_P99_MS = "latency_ms/high_p99"
LATENCY_LOW_P50_MS = "latency_ms/low_p50"
LATENCY_LOW_P99_MS = "latency_ms/low_p99"
QUEUE_P50_MS = "queue_ms/p50"  # arrival to dispatch
QUEUE_P99_MS = "queue_ms/p99"
DROP_RATE = "drop_rate/all"  # dropped over all offered
BATCH_SIZE_MEAN = "batch_size/mean"
DECISION_P50_US = "decision_us/p50"
DECISION_P99_US = "decision_us/p99"
FAIRNESS_MODELS = "fairness/models"  # Jain's index over the models' shares of requests met
FALLBACKS = "policy/fallbacks"  # decisions taken by the fallback policy, since the start
QUEUED = "queue/length"
IN_FLIGHT = "streams/busy"
PREDICTION_RATIO = "prediction/actual_over_predicted"  # of batch latency, median
EPISODE_RETURN = "episode/return"  # undiscounted sum of rewards
EPISODE_LENGTH = "episode/length"  # decisions

# By priority:
VIOLATION = (VIOLATION_HIGH, VIOLATION_LOW)
LATENCY_MS = ((LATENCY_HIGH_P50_MS, LATENCY_HIGH_P99_MS), (LATENCY_LOW_P50_MS, LATENCY_LOW_P99_MS))


def outcome_tag(priority: str, outcome: str) -> str:
    """Name of the count of requests of a priority ("high", "low") that ended in an outcome ("met", "late", ...)."""
    return f"outcome/{priority}/{outcome}"
