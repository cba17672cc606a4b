"""Latency as a budget: measured candidates, a model of every operator's time, a search.

1. Some two dozen candidates are designed (`design.py`), cut and measured on this machine
   (`laboratory.py`), or were before (`cache.py`).
2. The time of each operator is fitted as a function of its sizes (`model.py`).
3. The allocator finds the most important network within the budget, which is measured; the model
   learns from that, until both agree (`search.py`).
"""

from spa_graph.passes.latency.laboratory import Conditions, Laboratory
from spa_graph.passes.latency.search import Found, within_latency

__all__ = ["Conditions", "Found", "Laboratory", "within_latency"]
