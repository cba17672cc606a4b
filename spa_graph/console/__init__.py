"""What people see on a terminal: progress on stderr, tables on stdout."""

from spa_graph.console.bars import progress
from spa_graph.console.bench import show_bench
from spa_graph.console.comparison import show_comparison
from spa_graph.console.inspection import show_inspection
from spa_graph.console.result import show_result
from spa_graph.console.sensitivity import show_sensitivity
from spa_graph.console.sweep import show_sweep
from spa_graph.console.text import answer

__all__ = [
    "answer",
    "progress",
    "show_bench",
    "show_comparison",
    "show_inspection",
    "show_result",
    "show_sensitivity",
    "show_sweep",
]
