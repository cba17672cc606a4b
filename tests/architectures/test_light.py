"""The rows of the coverage matrix that need neither torch nor minutes: onnx's own light models."""

from __future__ import annotations

from pathlib import Path

import pytest

import spa_graph
from spa_graph.models_zoo import catalogue
from tests.architectures.checks import assert_runs
from tests.architectures.recount import interface

QUICK = ("bvlc_alexnet", "inception_v1", "shufflenet", "squeezenet")


@pytest.mark.parametrize("kind", ["", "_stored"])
@pytest.mark.parametrize("name", QUICK)
def test_half_of_the_flops(name: str, kind: str, tmp_path: Path) -> None:
    source = catalogue.entry(f"onnx/light_{name}{kind}").source
    assert source is not None
    path, pruned = source(), tmp_path / "pruned.onnx"
    result = spa_graph.prune(path, flops=0.5, output=pruned)
    proof = result.report["verification"]
    assert proof["error"] <= proof["tolerated"]
    assert result.report["ratio"]["flops"] <= 0.5
    assert interface(pruned) == interface(path)
    assert_runs(pruned)
