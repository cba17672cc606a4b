"""The accuracy grid: which cells it asks for, how a peer's sparsity is found, what it remembers."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import onnx
import pytest

from benchmarks import accuracy, reconstruct_time
from benchmarks.accuracy import OURS, Cell, Result, at_flops, page, wanted
from benchmarks.grid import Grid
from tests.models import CHAIN, network

GRID = Namespace(
    tools=[OURS],
    data=["inputs", "foreign"],
    seeds=2,
    criteria=["obspa", "l1"],
    ratios=[0.7, 0.5],
    repairs=["none", "ls"],
)


def test_a_grid_has_one_cell_for_each_combination() -> None:
    cells = wanted(GRID, "svhn")
    assert len(set(cells)) == len(cells) == 2 * 2 * 2 * 2 * 2
    assert {cell.tool for cell in cells} == {OURS}


def test_peers_are_asked_for_by_name() -> None:
    cells = wanted(Namespace(**{**vars(GRID), "tools": ["onnxsim"]}), "svhn")
    assert {cell.tool for cell in cells} == {"onnxsim"}
    assert {cell.ratio for cell in cells} == {0.7, 0.5}


def test_the_least_sparsity_within_the_budget_is_found() -> None:
    found = at_flops(lambda sparsity: sparsity, lambda sparsity: 1 - sparsity, 0.7)
    assert 1 - found <= 0.7
    assert found == pytest.approx(0.3, abs=0.98 / 2 ** (accuracy.STEPS - 1))


def test_a_budget_that_no_sparsity_meets_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="are not reached"):
        at_flops(lambda sparsity: sparsity, lambda _: 1.0, 0.5)


def test_the_page_counts_repairs_that_cost_accuracy() -> None:
    cells = [Cell("svhn", OURS, "l1", repair, "inputs", 0.5) for repair in ("none", "bias", "ls")]
    alone = Cell("svhn", OURS, "l2", "ls", "inputs", 0.5)
    values = (0.7, 0.6, 0.8, 0.1)
    results = [Result(cell, value) for cell, value in zip([*cells, alone], values, strict=True)]
    text = page(results, {"svhn": 0.858})
    assert "| inputs | bias | 1 | 1 | 1 | 1 | -0.100 |" in text
    assert text.endswith("| inputs | ls | 1 | 0 | 0 | 0 | +0.100 |\n")


def test_results_are_read_back_and_shown_as_mean_and_span(tmp_path: Path) -> None:
    cells = [Cell("svhn", OURS, "obspa", "ls", "inputs", 0.5, seed) for seed in (0, 1)]
    broken = Cell("svhn", "onnxsim", "l2", "none", "none", 0.5)
    results = [Result(cells[0], 0.8), Result(cells[1], 0.9), Result(broken, failure="no way")]
    record = tmp_path / "accuracy.jsonl"
    grid = Grid(record, Cell, Result)
    for result in results:
        grid.add(result)
    again = Grid(record, Cell, Result)
    assert list(again.known) == [*cells, broken]
    text = page(again.results, {"svhn": 0.858})
    assert "| spa-prune | obspa | ls | inputs | 0.850 (0.800 to 0.900) |" in text
    assert "| onnxsim | l2 | none | none | no way |" in text


def test_the_time_of_a_reconstruction_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "chain.onnx"
    onnx.save(network(CHAIN), path)
    result, seconds, before = reconstruct_time.measure(path, 64, 0.5)
    assert result.layers
    assert seconds > 0
    assert 0.01 < before <= reconstruct_time.peak()
