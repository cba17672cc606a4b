"""What people see on a terminal: progress on stderr, tables on stdout."""

from spa_graph.console.inspection import show_inspection
from spa_graph.console.progress import progress
from spa_graph.console.result import show_result

__all__ = ["progress", "show_inspection", "show_result"]
