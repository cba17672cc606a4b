"""Scoring: a criterion's saliency of weights -> one importance per coupled channel.

SPA (arXiv 2403.18955), section 3: take the criterion on every parameter of a group, reduce it to
one vector per parameter axis, add up what belongs to the same channel, normalise within the group,
aggregate over the group's parameters. A new criterion is one file in this folder.
"""

from spa_graph.passes.importance import (
    activation,
    apoz,
    bonsai,
    flap,
    fpgm,
    hrank,
    kprune,
    lamp,
    magnitude,
    obspa,
    random,
    scale,
    wanda,
    zeroth_order,
)
from spa_graph.passes.importance.base import (
    AGGREGATES,
    CRITERIA,
    NORMALIZERS,
    Criterion,
    make_criterion,
    score,
)

__all__ = [
    "AGGREGATES",
    "CRITERIA",
    "NORMALIZERS",
    "Criterion",
    "activation",
    "apoz",
    "bonsai",
    "flap",
    "fpgm",
    "hrank",
    "kprune",
    "lamp",
    "magnitude",
    "make_criterion",
    "obspa",
    "random",
    "scale",
    "score",
    "wanda",
    "zeroth_order",
]
