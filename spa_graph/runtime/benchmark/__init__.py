"""Measuring networks next to each other: time, memory, time per operator."""

from spa_graph.runtime.benchmark.latency import Latency, measure
from spa_graph.runtime.benchmark.profile import OperatorTime, operator_times
from spa_graph.runtime.benchmark.timing import Timing, interleaved, ratio_interval

__all__ = [
    "Latency",
    "OperatorTime",
    "Timing",
    "interleaved",
    "measure",
    "operator_times",
    "ratio_interval",
]
