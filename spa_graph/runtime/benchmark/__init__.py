"""Measuring networks next to each other: time, memory, time per operator."""

from spa_graph.runtime.benchmark.latency import Latency, measure
from spa_graph.runtime.benchmark.profile import PROFILED, OperatorTime, operator_times
from spa_graph.runtime.benchmark.timing import Timing, interleaved, ratio_interval

__all__ = [
    "PROFILED",
    "Latency",
    "OperatorTime",
    "Timing",
    "interleaved",
    "measure",
    "operator_times",
    "ratio_interval",
]
