"""The synthetic family of benchmarks/scaling.py, at small sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

import spa_graph
from benchmarks.scaling import LENGTH, elements, family, page, picture, slope


@pytest.mark.parametrize(("blocks", "width"), [(1, 16), (3, 32)])
def test_family_ties_channels_as_described(blocks: int, width: int, tmp_path: Path) -> None:
    model = family(blocks, width)
    analysis = spa_graph.analyze(model)
    assert analysis.changed == [f"{blocks} channel shuffles became Gather"]
    assert not analysis.coupling.facts.frozen_operators
    # the stem, and of each block: what is squeezed, and what is expanded, in two halves
    assert len(analysis.groups) == 1 + 3 * blocks
    result = spa_graph.prune(model, flops=0.5, output=tmp_path / "pruned.onnx")
    assert result.report["ratio"]["flops"] <= 0.5


def test_elements_grow_with_width_and_depth() -> None:
    def count(blocks: int, width: int) -> int:
        return elements(spa_graph.analyze(family(blocks, width)).coupling)

    small, wide, deep, wide_and_deep = count(2, 16), count(2, 32), count(4, 16), count(4, 32)
    assert wide_and_deep - deep == 2 * (wide - small) - 16  # one stem
    assert LENGTH not in (small, wide, deep)


def test_slope_and_page() -> None:
    rows = [
        {"blocks": 1, "width": 8, "operators": 3, "groups": 2, "elements": 10**power,
         "read": 0.01, "analyze": 1e-6 * 10**power, "file": 1, "memory": 2}
        for power in (3, 5, 7)
    ]  # fmt: skip
    assert slope(rows, "analyze") == pytest.approx(1)
    assert slope(rows, "read") == pytest.approx(0)
    text = page({"wider": rows})
    assert "| 1 | 8 | 3 | 100000 | 2 | 0.010 | 0.1000 | 1.00 |" in text
    assert picture({"wider": rows}).count("<polyline") == 5
