"""Rows of the operator matrix, and what every row is checked for.

A row is a small network around one operator: ONNX text from its inputs on. Weights are declared
without a value and get random numbers; names that begin with `scale` or `var` get positive ones.

    Row("relu", "(float[N,4] x) => (float[] y) <float[4,8] w1, float[8,3] w2>"
                "{ h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }", prunes=("w1:1", "w2:0"))

Checked of every row that prunes something: sliced equals masked (the program's own proof, on both
probes); keeping all channels changes no bit; and, where removal is exact, that the pruned network
computes what ONNX Runtime computes with the weights zeroed by hand, as the plan lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray

from spa_graph import Plan, analyze, apply_plan
from spa_graph.passes.network import Analysis
from spa_graph.plan import make_plan
from spa_graph.runtime.inputs import random_inputs
from tests.models import assert_same_outputs, changed_by, network, outputs, stored, zero

Array = NDArray[Any]
RUNTIME = ', "com.microsoft" : 1'


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One network and what must come of it.

    Attributes:
        prunes: weight axes, as `name:axis`, that belong to a channel group.
        frozen: weight axes that don't, each with a part of the reason that is reported.
        exact: whether removing all its channels equals zeroing their weights; None: both occur.
        values: weights that aren't random.
        runs: whether ONNX Runtime has a CPU kernel; if not, only the analysis is checked.
        declared_opset: what the file says instead of `opset`, as ONNX's checker refuses operators
            that are deprecated there although files with them exist.
        renamed: operator types that ONNX's checker doesn't know, by what they are written as.
    """

    name: str
    text: str
    prunes: tuple[str, ...] = ()
    frozen: Mapping[str, str] = field(default_factory=dict)
    exact: bool | None = True
    opset: int = 21
    values: Mapping[str, Any] = field(default_factory=dict)
    runs: bool = True
    declared_opset: int | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def model(self) -> onnx.ModelProto:
        text, imports = "row " + self.text, RUNTIME if "com.microsoft." in self.text else ""
        graph = onnx.parser.parse_graph(text)
        values = dict(self.values)
        generator = np.random.default_rng(len(self.text))
        for declared in graph.value_info:
            if declared.name not in values:
                values[declared.name] = _weight(declared, generator)
        model = network(text, opset=self.opset, values=values, imports=imports)
        for node in model.graph.node:
            node.op_type = self.renamed.get(node.op_type, node.op_type)
        model.opset_import[0].version = self.declared_opset or self.opset
        return model


def row(name: str, text: str, *prunes: str, **options: Any) -> Row:
    """A row; `prunes` as arguments reads better in tables."""
    return Row(name=name, text=text, prunes=prunes, **options)


def rules_in(entry: Row) -> set[tuple[str, str]]:
    """The (domain, operator type) of every operator of a row, subgraphs included."""
    found = _rules_in(onnx.parser.parse_graph("row " + entry.text))
    return {(domain, entry.renamed.get(op_type, op_type)) for domain, op_type in found}


def _rules_in(graph: onnx.GraphProto) -> set[tuple[str, str]]:
    found = {(node.domain, node.op_type) for node in graph.node}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= _rules_in(attribute.g)
    return found


def _weight(declared: onnx.ValueInfoProto, generator: np.random.Generator) -> Array:
    kind = declared.type.tensor_type
    shape = [dim.dim_value for dim in kind.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu" or dtype.name == "int4":
        low, high = (0, 20) if dtype.kind == "u" else (-8, 8)
        return generator.integers(low, high, shape).astype(dtype)
    values = generator.uniform(0.3, 1.2, shape)
    if not declared.name.startswith(("scale", "var")):
        values *= generator.choice([-1.0, 1.0], shape)
    return np.asarray(values, dtype)


# --- checking --------------------------------------------------------------------------------


def check(entry: Row, folder: Path) -> None:
    """Everything that a row promises."""
    model = entry.model()
    analysis = analyze(model)
    _check_groups(entry, analysis)
    if not entry.runs:
        return
    if entry.prunes:
        _check_pruned(entry, model, analysis, folder)
    else:
        outputs(model, random_inputs(analysis.graph))  # the row itself is a valid network


def _check_groups(entry: Row, analysis: Analysis) -> None:
    coupling = analysis.coupling
    found = {f"{m.parameter}:{m.axis}" for group in coupling.groups for m in group.members}
    reasons = coupling.frozen_reasons
    assert set(entry.prunes) <= found, f"found {sorted(found)}; frozen: {reasons}"
    if not entry.prunes:
        assert not found
    for axis, reason in entry.frozen.items():
        assert axis not in found, f"{axis} is in a group"
        assert reason in reasons.get(axis, ""), f"{axis}: {reasons.get(axis)!r}"
    if entry.exact is not None:
        inexact = [group.name for group in coupling.groups if group.exact is not entry.exact]
        assert not inexact, f"not as declared: {inexact}"


def _check_pruned(entry: Row, model: onnx.ModelProto, analysis: Analysis, folder: Path) -> None:
    coupling = analysis.coupling
    plan = make_plan(coupling, _half(analysis))
    original, smaller, same = (folder / f"{name}.onnx" for name in ("original", "smaller", "same"))
    onnx.save(model, original)
    apply_plan(original, plan, output=smaller)
    _check_smaller(entry, plan)
    everything = make_plan(coupling, np.ones(coupling.count, bool))
    apply_plan(original, everything, output=same, verify=False)
    feeds = random_inputs(analysis.graph, seed=1)
    for got, want in zip(outputs(same, feeds), outputs(model, feeds), strict=True):
        np.testing.assert_array_equal(got, want)
    if entry.exact and set(plan.kept) <= set(stored(model)):
        masked = changed_by(model, plan, zero)
        assert_same_outputs(smaller, masked, feeds, rtol=1e-3, atol=1e-4)


def _half(analysis: Analysis) -> NDArray[np.bool_]:
    """Keep a random half of each group, at least one channel."""
    generator = np.random.default_rng(analysis.coupling.count)
    kept = np.ones(analysis.coupling.count, bool)
    for group in analysis.coupling.groups:
        count = min(group.size // 2, group.size - group.least)
        gone = generator.permutation(np.arange(group.start, group.stop))[:count]
        kept[gone] = False
    return kept


def _check_smaller(entry: Row, plan: Plan) -> None:
    cut = {f"{name}:{axis}" for name, axes in plan.kept.items() for axis in axes}
    for name, uses in plan.kept_per_use.items():
        cut |= {f"{name}:{axis}" for axes in uses.values() for axis in axes}
    assert set(entry.prunes) <= cut, f"only {sorted(cut)} were cut"
