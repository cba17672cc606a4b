"""When values are alive: from the operator that computes them to the last one that reads them."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array, csr_array

from spa_graph.graph import Graph

_SAME_BYTES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
"""Operators whose result is their input, seen otherwise."""


def lifetimes(graph: Graph) -> tuple[list[str], csr_array]:
    """Values that take memory, and which of them are alive while each operator runs.

    Weights are left out, and so is what follows from sizes alone. Inputs of the network are alive
    throughout, outputs until the end. A result that is its input seen otherwise takes none of its
    own. What runtimes save by working in place isn't counted.

    Returns:
        Their names, and a matrix of ones and zeros, (operators, values).
    """
    owner: dict[str, str] = {}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    end = max(len(graph.operators) - 1, 0)
    fixed = {*graph.parameters, *graph.known}
    for name in graph.inputs:
        owner[name], first[name], last[name] = name, 0, end
    for place, operator in enumerate(graph.operators):
        for name in (*operator.inputs, *operator.captures):
            if name in owner:
                last[owner[name]] = max(last[owner[name]], place)
        for slot, name in enumerate(operator.outputs):
            if not name or name in fixed or name not in graph.shapes:
                continue
            same = operator.op_type in _SAME_BYTES and slot == 0
            owner[name] = owner.get(operator.inputs[0], name) if same else name
            if owner[name] == name:
                first[name] = last[name] = place
    for name in graph.outputs:
        if name in owner:
            last[owner[name]] = end
    names = list(first)
    spans = [np.arange(first[name], last[name] + 1) for name in names]
    rows = np.concatenate([np.zeros(0, np.int64), *spans])
    columns = np.repeat(np.arange(len(names)), [len(span) for span in spans])
    shape = (len(graph.operators), len(names))
    return names, coo_array((np.ones(len(rows)), (rows, columns)), shape=shape).tocsr()
