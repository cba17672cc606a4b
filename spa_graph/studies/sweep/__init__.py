"""Pruning to many budgets by several criteria: what accuracy each size still has."""

from spa_graph.studies.sweep.frontier import frontier
from spa_graph.studies.sweep.run import sweep

__all__ = ["frontier", "sweep"]
