"""What is checked of every network, large or small."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

import spa_graph
from spa_graph.passes.network import Analysis
from spa_graph.passes.report import frozen
from tests.architectures.recount import flops, interface

BUDGET = 0.5
BATCHES = (1, 2, 5)
TOKENS = 50  # of every vocabulary, the smallest


def check_network(path: Path, pruned: Path) -> spa_graph.Result:
    """Prune to half of the FLOPs: the budget is met, the proof holds, the file runs as before."""
    before = interface(path)
    result = spa_graph.prune(path, flops=BUDGET, output=pruned)
    proof = result.report["verification"]
    assert proof["error"] <= proof["tolerated"]
    assert result.report["ratio"]["flops"] <= BUDGET
    _check_recount(path, pruned, result.report)
    assert interface(pruned) == before
    assert_runs(pruned)
    return result


def _check_recount(path: Path, pruned: Path, report: dict[str, Any]) -> None:
    """The same FLOPs by another way of counting; one sample."""
    session = ort.InferenceSession(pruned, providers=["CPUExecutionProvider"])
    feeds = {value.name: _random(value, 1) for value in session.get_inputs()}
    counts = flops(path, feeds), flops(pruned, feeds)
    assert counts[0] == pytest.approx(report["before"]["flops"], rel=1e-9)
    assert counts[1] == pytest.approx(report["after"]["flops"], rel=1e-9)
    assert counts[1] <= BUDGET * counts[0]


def assert_runs(path: Path) -> None:
    """ONNX Runtime runs the file, optimised as for a user, at every batch size that it allows."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    dynamic = any(isinstance(value.shape[0], str) for value in session.get_inputs())
    for batch in BATCHES if dynamic else (None,):
        feeds = {value.name: _random(value, batch) for value in session.get_inputs()}
        for value, output in zip(session.get_outputs(), session.run(None, feeds), strict=True):
            assert np.isfinite(output).all()
            if isinstance(value.shape[0], str) and batch is not None:
                assert output.shape[0] == batch


def _random(value: Any, batch: int | None) -> NDArray[Any]:
    shape = [batch if isinstance(size, str) else size for size in value.shape]
    generator = np.random.default_rng(1)
    if "int" in value.type:
        return generator.integers(0, TOKENS, shape)
    return generator.standard_normal(shape).astype(np.float32)


def group_sizes(analysis: Analysis) -> Counter[int]:
    """How many groups there are of each size."""
    return Counter(group.size for group in analysis.groups)


def group_text(analysis: Analysis) -> str:
    """The groups as text: channels, and the parameter axes that go with them."""
    lines = []
    for group in analysis.groups:
        kind = "exact" if group.exact else "renormalising"
        lines.append(f"{group.name}: {group.size} channels, {kind}")
        lines += [
            f"    {member.parameter}:{member.axis} {_positions(member.index)}"
            for member in group.members
        ]
    lines.append("frozen:")
    lines += [f"    {axis}: {why}" for axis, why in frozen(analysis.coupling)["parameters"].items()]
    return "\n".join(lines) + "\n"


def _positions(index: NDArray[np.int64]) -> str:
    """Which positions go with the first and the last channel."""
    return f"[{_ranges(index[0])}] ... [{_ranges(index[-1])}]"


def _ranges(positions: NDArray[np.int64]) -> str:
    """0, 1, 2, 7 -> `0:3,7`."""
    runs = np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1)
    return ",".join(f"{run[0]}:{run[-1] + 1}" if len(run) > 1 else str(run[0]) for run in runs)
