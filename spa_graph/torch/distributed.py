"""Several processes that train one module prune it alike."""

from __future__ import annotations

import json

from torch import distributed

from spa_graph.plan import Plan


def agree(plan: Plan) -> Plan:
    """The plan of the first process, in all of them; without torch.distributed the plan itself.

    Equal weights give equal plans, but what was measured on a process' own data doesn't, nor do
    BatchNorm statistics. Every process must call this.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return plan
    held = [json.dumps(plan.to_json())]
    distributed.broadcast_object_list(held, src=0)
    return Plan.from_json(json.loads(held[0]))
