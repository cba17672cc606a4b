"""Pruning to many budgets by several criteria: what accuracy each size still has."""

from spa_graph.studies.sweep.frontier import COLUMNS, frontier
from spa_graph.studies.sweep.run import check, sweep

__all__ = ["COLUMNS", "check", "frontier", "sweep"]
