"""Cells of benchmarks/any_time.py: same FLOPs for both tools, and results that are read back."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn", reason="scikit-learn, which has the digits, is not installed")

from benchmarks import any_time  # noqa: E402
from benchmarks.any_time import Cell, Result  # noqa: E402
from benchmarks.grid import Grid  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.mark.parametrize("network", ["cnn", "vit"])
@pytest.mark.parametrize("tool", ["spa-prune", "torch-pruning"])
def test_a_cell(network: str, tool: str) -> None:
    if tool == "torch-pruning":
        pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    result = any_time.run(Cell(network, tool, "l1", "iterative", 0.5, 0, 1, 4))
    assert not result.failure and 0.45 < result.flops <= 0.5
    assert result.accuracy > (0.8 if network == "cnn" else 0.15)  # of ten classes


def test_a_criterion_that_a_tool_lacks_is_a_failure_and_is_shown(tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    cell = Cell("cnn", "torch-pruning", "bn-scale", "prune-train", 0.5, 0, 1, 1)
    result = any_time.run(cell)
    assert result.failure == "Torch-Pruning has no criterion bn-scale"
    done = Result(Cell("cnn", "spa-prune", "l1", "prune-train", 0.5, 0, 1, 1), 0.912, 0.5, 1.0)
    path = tmp_path / "any_time.jsonl"
    for each in (result, done):
        Grid(path, Cell, Result).add(each)
    again = Grid(path, Cell, Result)
    assert again.known[cell].failure == result.failure and again.known[done.cell] == done
    text = any_time.page(again.results)
    assert "| prune-train | l1 | spa-prune | 91.2 |" in text
    assert "| prune-train | bn-scale | torch-pruning | Torch-Pruning has no" in text
