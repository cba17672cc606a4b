"""spa-prune: structured pruning of trained networks, as a graph compiler pass.

>>> import spa_graph
>>> spa_graph.__name__
'spa_graph'
"""

from spa_graph.api import Result, analyze, apply_plan, prune
from spa_graph.coupling.analysis import ChannelGroup
from spa_graph.errors import (
    BudgetError,
    ModelError,
    OptionError,
    RewriteError,
    SpaError,
    VerificationError,
)
from spa_graph.plan import Plan

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "ChannelGroup",
    "ModelError",
    "OptionError",
    "Plan",
    "Result",
    "RewriteError",
    "SpaError",
    "VerificationError",
    "analyze",
    "apply_plan",
    "prune",
]
