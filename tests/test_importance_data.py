"""Criteria that look at calibration data, and error curves, against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import spa_graph
from spa_graph.errors import ModelError, OptionError
from spa_graph.passes.calibrated import Calibrated, calibrate
from spa_graph.passes.importance import CRITERIA, score
from spa_graph.passes.network import Analysis
from spa_graph.passes.options import Options, Timer
from spa_graph.passes.statistics.readers import error_curve, readers, taken_over
from tests.models import network, stored

TEXT = """
net (float[N,4] x) => (float[N,3] y) <float[4,8] w1, float[8,3] w2>
{ h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }
"""
CONV = """
net (float[N,3,6,6] x) => (float[N,5,4,4] y) <float[8,3,3,3] w1, float[5,8,3,3] w2>
{ h = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(h) y = Conv(r, w2) }
"""
FROM_DATA = sorted(name for name, make in CRITERIA.items() if make(0).needs_data)


def calibrated(
    tmp_path: Any, text: str, values: Any = None, groups: Any = "groups", **options: Any
) -> tuple[Analysis, Calibrated, Any]:
    model = network(text, values=values)
    analysis = spa_graph.analyze(model, groups=groups)
    shape = [64, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])]
    data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    chosen = Options(calibrate=data, **options)
    found = calibrate(analysis, chosen, Timer(), tmp_path)
    return analysis, found, model


def seen(found: Calibrated, model: Any) -> np.ndarray[Any, Any]:
    """The hidden features of the fitted samples; (samples, 8)."""
    x = np.concatenate([feeds["x"] for feeds in found.fitting])
    return np.maximum(x @ stored(model)["w1"], 0).astype(np.float64)


def scores(analysis: Analysis, found: Calibrated) -> np.ndarray[Any, Any]:
    options = {"normalize": "none", "aggregate": "sum"}
    return score(analysis.coupling, found.criterion, layers=found.layers, **options)


def test_wanda_is_weight_times_norm(tmp_path: Any) -> None:
    analysis, found, model = calibrated(tmp_path, TEXT, criterion="wanda")
    features = seen(found, model)
    want = np.abs(stored(model)["w2"]).sum(1) * np.sqrt(np.square(features).mean(0))
    np.testing.assert_allclose(scores(analysis, found), want, rtol=1e-4)


def test_flap_is_fluctuation_times_squared_weights(tmp_path: Any) -> None:
    analysis, found, model = calibrated(tmp_path, TEXT, criterion="flap")
    want = seen(found, model).var(0) * np.square(stored(model)["w2"]).sum(1)
    np.testing.assert_allclose(scores(analysis, found), want, rtol=1e-4)


def brute_force(gram: Any, matrix: Any, gone: Any) -> float:
    """The squared error of the results when all but some inputs are refitted."""
    left = np.setdiff1d(np.arange(len(gram)), gone)
    fitted = np.linalg.solve(gram[np.ix_(left, left)], gram[left] @ matrix) if len(left) else 0
    difference = matrix.copy()
    if len(left):
        difference[left] -= fitted
    return float((difference * (gram @ difference)).sum())


def test_obspa_removes_what_others_can_take_over_first(tmp_path: Any) -> None:
    analysis, found, _ = calibrated(tmp_path, TEXT, criterion="obspa")
    (reader,) = readers(found.layers, analysis.groups[0])
    order = np.argsort(scores(analysis, found), kind="stable")
    gone: list[int] = []
    for channel in order.tolist()[:-1]:
        losses = {
            other: brute_force(reader.gram, reader.matrix, [*gone, other])
            for other in range(8)
            if other not in gone
        }
        assert losses[channel] == pytest.approx(min(losses.values()), rel=1e-6)
        gone.append(channel)


@pytest.mark.parametrize("text", [TEXT, CONV])
def test_error_curve_is_that_of_least_squares(tmp_path: Any, text: str) -> None:
    analysis, found, _ = calibrated(tmp_path, text)
    (reader,) = readers(found.layers, analysis.groups[0])
    order = np.random.default_rng(1).permutation(8)
    curve = error_curve([reader], order)
    want = [brute_force(reader.gram, reader.matrix, order[:count]) for count in range(9)]
    np.testing.assert_allclose(curve, want, rtol=1e-6, atol=1e-9)
    assert (np.diff(curve) >= 0).all()


def test_the_others_take_over_by_least_squares(tmp_path: Any) -> None:
    analysis, found, model = calibrated(tmp_path, TEXT)
    (reader,) = readers(found.layers, analysis.groups[0])
    stays = np.arange(8) != 3
    matrix, bias = taken_over(reader.layer, stays[None])
    x = seen(found, model)
    want = x @ stored(model)["w2"]
    got = x[:, stays] @ matrix[0] + bias[0]
    assert np.square(got - want).mean() < np.square(x[:, [3]] @ stored(model)["w2"][[3]]).mean()
    np.testing.assert_allclose(got.mean(0), want.mean(0), atol=1e-4)


@pytest.mark.parametrize("criterion", FROM_DATA)
@pytest.mark.parametrize("text", [TEXT, CONV])
def test_all_give_numbers(tmp_path: Any, criterion: str, text: str) -> None:
    analysis, found, _ = calibrated(tmp_path, text, criterion=criterion)
    numbers = scores(analysis, found)
    assert numbers.shape == (8,)
    assert np.isfinite(numbers).all()
    assert numbers.min() < numbers.max()


@pytest.mark.parametrize("criterion", FROM_DATA)
def test_all_prune(criterion: str) -> None:
    options = {"criterion": criterion, "calibrate": "data-free", "samples": 32}
    result = spa_graph.prune(network(CONV), flops=0.7, round_to=1, **options)
    assert result.report["ratio"]["flops"] <= 0.7


@pytest.mark.parametrize("criterion", FROM_DATA)
def test_they_need_data(criterion: str) -> None:
    with pytest.raises(OptionError, match=f"`{criterion}` needs calibration data"):
        spa_graph.prune(network(TEXT), flops=0.5, criterion=criterion)


def test_features_that_are_too_large_are_blamed() -> None:
    model = network(TEXT)
    data = np.full((16, 4), 3e38, np.float32)
    with pytest.raises(ModelError, match="the layer of `w2` reads of the calibration data"):
        spa_graph.prune(model, flops=0.5, calibrate=data)
