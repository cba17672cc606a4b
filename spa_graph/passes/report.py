"""The report: everything that the table and `inspect` show, as JSON-ready data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.analysis import Coupling
from spa_graph.passes.allocate import Kept
from spa_graph.passes.calibrated import Calibrated
from spa_graph.passes.cost import CostModel, counts_as_weight
from spa_graph.passes.network import Analyzed, PrunedGraph
from spa_graph.passes.pipeline import Choice
from spa_graph.passes.reconstruct import Reconstruction
from spa_graph.runtime.benchmark import Latency, OperatorTime
from spa_graph.runtime.inputs import shapes_text
from spa_graph.runtime.machine import machine, versions
from spa_graph.runtime.verify import Agreement

Floats = NDArray[np.float64]


def inspection(analysis: Analyzed) -> dict[str, Any]:
    """What `inspect` shows: groups, cost per operator, what is frozen and why."""
    coupling, cost = analysis.coupling, analysis.cost
    return {
        "model": {"name": analysis.graph.name, "operators": len(analysis.graph.operators)},
        "flops": cost.cost("flops", cost.full),
        "params": cost.cost("params", cost.full),
        "channels": coupling.count,
        "smallest_flops_ratio": cost.ratio("flops", cost.least),
        "smallest_params_ratio": cost.ratio("params", cost.least),
        "groups": [_group(analysis, i, None) for i in range(len(coupling.groups))],
        "operators": _operators(analysis, None),
        "frozen": frozen(coupling),
        "canonicalized": analysis.changed,
        "input_shapes": {name: list(s) for name, s in analysis.graph.samples[0].items()},
    }


def report(
    analysis: Analyzed,
    pruned: PrunedGraph,
    *,
    options: dict[str, Any],
    seconds: dict[str, float],
    agreement: Agreement | None,
    latency: Latency | None,
    sizes: tuple[int, int] | None,
    times: Sequence[Sequence[OperatorTime]] = (),
) -> dict[str, Any]:
    """What a run did; `sizes` are the bytes of both files, `times` their profiles."""
    coupling, kept = analysis.coupling, pruned.kept
    data = inspection(analysis) | {
        "versions": versions(),
        "machine": machine(),
        "options": options,
        "before": _totals(analysis.cost, coupling.count, options),
        "after": _totals(pruned.after, int(kept.sum()), options),
        "groups": [_group(analysis, i, kept) for i in range(len(coupling.groups))],
        "operators": _operators(analysis, pruned),
        "seconds": {step: round(value, 4) for step, value in seconds.items()},
    }
    data["ratio"] = {
        key: data["after"][key] / data["before"][key] if data["before"][key] else 1.0
        for key in data["before"]
    }
    if sizes is not None:
        data["before"]["bytes"], data["after"]["bytes"] = sizes
        data["ratio"]["bytes"] = sizes[1] / sizes[0]
    if agreement is not None:
        data["verification"] = {
            "compared": "pruned network with the masked original, on random input",
            "output": agreement.output,
            "error": agreement.error,
            "output_varied": agreement.shown,
            "alive": agreement.alive,
            "tolerated": agreement.tolerated,
        }
    if latency is not None:
        data["latency"] = {
            "before_ms": latency.before,
            "after_ms": latency.after,
            "speedup": latency.speedup,
            "ratio_interval": list(latency.interval),
            "runs": latency.runs,
        }
        if times:
            before, after = ([asdict(each) for each in side] for side in times)
            data["latency"]["operators"] = {"before": before, "after": after}
    return data


DEAD = (
    "the outputs no longer depend on the input, where the unpruned network's do: without training, "
    "the network is of no use at this size, and the proof says little"
)
APART = 0.1
"""Two measurements of the same network that differ by more were disturbed."""
_CHOSEN_BY = {
    "latency": "channel counts are multiples of {} where they can be",
    "flops": "it is what --flops leads to, which keeps more here than the model of latency",
}


def measured_for(report: dict[str, Any]) -> str:
    """What sizes of inputs the numbers are for, in a sentence."""
    inputs = shapes_text(report["input_shapes"])
    batch = report["options"].get("batch")
    if report.get("latency") and batch is not None:
        return f"FLOPs are for input {inputs}, latency for batches of {batch}"
    return f"FLOPs and latency are for input {inputs}"


def budget_met(found: dict[str, Any], last: dict[str, Any] | None = None) -> str:
    """What came of a budget of latency, in a sentence.

    Args:
        last: the latencies of the table, measured when all was done.
    """
    apart = "no closer network that keeps as much was found"
    how = "within 5%" if found["within_5_percent"] else apart
    count = len(found["trials"])
    return (
        f"latency budget {found['budget_ms']:.3g} ms: measured {found['measured_ms']:.3g} ms, "
        f"predicted {found['predicted_ms']:.3g} ms ({how}; {count} network{'s' * (count > 1)} "
        f"measured); {_CHOSEN_BY[found['chosen_by']].format(found['unit'])}"
        + _disturbed(found["measured_ms"], last)
    )


def _disturbed(measured: float, last: dict[str, Any] | None) -> str:
    if last is None or abs(last["after_ms"] / measured - 1) <= APART:
        return ""
    return (
        f"; measured again at the end it takes {last['after_ms']:.3g} ms: something else ran "
        "meanwhile, so repeat it when the machine is idle"
    )


def calibration_report(
    calibrated: Calibrated, choice: Choice | None, reconstruction: Reconstruction | None
) -> dict[str, Any]:
    """What calibration data was used for, and what it brought."""
    data: dict[str, Any] = {
        "source": calibrated.source,
        "kind": calibrated.fitting.kind,
        "fitted_to": calibrated.fitting.count,
        "held_out": calibrated.held_out.count,
        "judged_by": calibrated.judging.count,
        "criterion": calibrated.criterion.name,
    }
    if choice is not None and choice.sensitivity is not None:
        data["probes"] = [asdict(probe) for probe in choice.sensitivity.probes]
    if reconstruction is not None:
        data["reconstruction"] = asdict(reconstruction)
    return data


BINS = 40
LEAST_SHARE = 1e-6
"""Importances below this share of the largest are counted with it: their axis is logarithmic."""


def importance_report(analysis: Analyzed, scores: Floats, kept: Kept) -> dict[str, Any]:
    """How important the channels are that stay, and those that go; `scores` are (channels,).

    Counts between `edges` over all groups, and smallest, median and largest of each group.
    """
    largest = float(np.max(scores, initial=0.0))
    if not np.isfinite(largest) or largest <= 0:
        return {}
    shown = np.maximum(scores, LEAST_SHARE * largest)
    edges = np.geomspace(shown.min(), 1.001 * largest, BINS + 1)
    counts = {name: np.histogram(shown[own], edges)[0] for name, own in _sides(kept).items()}
    groups = []
    for group in analysis.groups:
        own = slice(group.start, group.stop)
        ranges = {n: _range(shown[own][side]) for n, side in _sides(kept[own]).items()}
        groups.append({"name": group.name, **ranges})
    return {
        "edges": edges.tolist(),
        **{name: found.tolist() for name, found in counts.items()},
        "groups": groups,
    }


def _sides(kept: Kept) -> dict[str, Kept]:
    return {"kept": kept, "removed": ~kept}


def _range(scores: Floats) -> list[float] | None:
    return [float(f(scores)) for f in (np.min, np.median, np.max)] if len(scores) else None


def frozen(coupling: Coupling) -> dict[str, Any]:
    """Operators without a usable rule, and parameter axes that can't be pruned, with reasons."""
    operators = coupling.graph.operators
    return {
        "operators": [
            {"name": operators[i].name, "type": operators[i].kind, "reason": reason}
            for i, reason in sorted(coupling.facts.frozen_operators.items())
        ],
        "by_type": dict(
            Counter(operators[i].kind for i in coupling.facts.frozen_operators).most_common()
        ),
        "parameters": {
            axis: reason
            for axis, reason in coupling.frozen_reasons.items()
            if counts_as_weight(coupling.graph.parameters[axis.rpartition(":")[0]])
        },
    }


def file_size(path: Path) -> int:
    """Bytes of a model file and of the external data beside it under its name."""
    beside = path.with_name(path.name + ".data")
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


def _totals(cost: CostModel, channels: int, options: dict[str, Any]) -> dict[str, Any]:
    """Memory only where it is the budget: it takes a look at every value."""
    memory = {"memory": cost.cost("memory", cost.full)} if "memory" in options else {}
    return {
        "flops": cost.cost("flops", cost.full),
        "params": int(cost.cost("params", cost.full)),
        "channels": channels,
        **memory,
    }


def _group(analysis: Analyzed, number: int, kept: Kept | None) -> dict[str, Any]:
    coupling, group = analysis.coupling, analysis.groups[number]
    structure = analysis.structures[number]
    data: dict[str, Any] = {
        "name": group.name,
        "structure": structure.kind,
        "pre_norm": structure.pre_norm,
        "channels": group.size,
        "least": group.least,
        "exact": group.exact,
        "parameters": [
            {
                "name": member.parameter,
                "axis": member.axis,
                "per_channel": int(member.index.shape[1]),
                "operator": coupling.graph.operators[member.operator].name,
            }
            for member in group.members
        ],
    }
    if kept is not None:
        data["kept"] = int(kept[group.start : group.stop].sum())
    return data


def _operators(analysis: Analyzed, pruned: PrunedGraph | None) -> list[dict[str, Any]]:
    """FLOPs and parameters of every operator that has any."""
    before = _per_operator(analysis.coupling, analysis.cost)
    if pruned is None:
        return list(before.values())
    after = _per_operator(pruned.after.coupling, pruned.after)
    for key, row in before.items():
        row["flops_after"] = after.get(key, {}).get("flops", 0.0)
        row["params_after"] = after.get(key, {}).get("params", 0)
    return list(before.values())


def _per_operator(coupling: Coupling, cost: CostModel) -> dict[str, dict[str, Any]]:
    """By first output, which pruning doesn't rename. A shared weight counts at its first use."""
    operators, parameters = coupling.graph.operators, coupling.graph.parameters
    flops = np.bincount(
        cost.operators, weights=cost.flops_per_cost(cost.full), minlength=len(operators)
    )
    rows = {}
    counted: set[str] = set()
    for operator in operators:
        own = [n for n in operator.inputs if n in parameters and n not in counted]
        counted.update(own)
        weights = [parameters[n] for n in dict.fromkeys(own) if counts_as_weight(parameters[n])]
        elements = sum(int(np.prod(weight.shape, dtype=np.int64)) for weight in weights)
        if flops[operator.index] or elements:
            rows[operator.outputs[0]] = {
                "name": operator.name,
                "output": operator.outputs[0],
                "type": operator.kind,
                "flops": float(flops[operator.index]),
                "params": elements,
            }
    return rows
