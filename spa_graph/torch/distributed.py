"""Several processes that train one module prune it alike."""

from __future__ import annotations

from typing import TypeVar

from torch import distributed

from spa_graph.plan import Plan

T = TypeVar("T")


def agree(plan: Plan) -> Plan:
    """The plan of the first process, in all of them; without torch.distributed the plan itself.

    Equal weights give equal plans, but what was measured on a process' own data doesn't, nor do
    BatchNorm statistics. Every process must call this.
    """
    return Plan.from_json(of_first(plan.to_json()))


def of_first(value: T) -> T:
    """What the first process holds; every process must call this."""
    if not distributed.is_available() or not distributed.is_initialized():
        return value
    held = [value]
    distributed.broadcast_object_list(held, src=0)
    return held[0]
