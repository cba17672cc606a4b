"""The updates of single layers: against numpy's least squares, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from spa_graph.passes.reconstruct.channelwise import BatchNormRegression, BiasRegression
from spa_graph.passes.reconstruct.regression import (
    DAMPINGS,
    GramRegression,
    Outcome,
    RowRegression,
)
from spa_graph.passes.reconstruct.sweep import remove_inputs

Array = NDArray[Any]
Form = Callable[..., Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def fitted(task: Any, rows: Array, residual: Array, batches: int = 4) -> Outcome:
    """Rows and residuals (groups, positions, ...) in batches, of which the last is held out."""
    parts = zip(np.array_split(rows, batches, 1), np.array_split(residual, batches, 1), strict=True)
    for number, (x, r) in enumerate(parts):
        task.add(x, r, held_out=number == batches - 1)
    outcome = task.solve()
    assert isinstance(outcome, Outcome)
    return outcome


def ridge(form: Form, x: Array, r: Array, damping: float, *, bias: bool) -> tuple[Array, Array]:
    """The formula of the module, in double precision, with numpy's own solver."""
    x, r = x.astype(np.float64), r.astype(np.float64)
    mean, gap = (x.mean(0), r.mean(0)) if bias else (0 * x[0], 0 * r[0])
    centred = x - mean
    gram = centred.T @ centred / len(x)
    mean_share = np.trace(gram) / len(gram)
    weigh = form is GramRegression  # by the root of the variance; rows are too few for that
    shares = np.sqrt(np.diag(gram) * mean_share) if weigh else np.full(len(gram), mean_share)
    stacked = np.concatenate([centred, np.diag(np.sqrt(len(x) * damping * shares))])
    wanted = np.concatenate([r - gap, np.zeros((len(gram), r.shape[1]))])
    matrix = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    return matrix, gap - mean @ matrix


FORMS = [GramRegression, RowRegression]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_an_exact_update_is_found(form: Form, bias: bool) -> None:
    x, truth = normal(1, 400, 6), normal(1, 6, 3, seed=1)
    shift = np.full((1, 3), 2.0 * bias, np.float32)
    outcome = fitted(form(bias=bias), x, x @ truth + shift)
    assert outcome.update is not None
    assert outcome.damping == DAMPINGS[0]
    np.testing.assert_allclose(outcome.update.matrix, truth, atol=1e-3)
    np.testing.assert_allclose(outcome.update.bias, shift, atol=1e-3)
    assert outcome.after < 1e-6 * outcome.before


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("positions", [12, 30, 200])
def test_the_update_is_ridge_regression_on_all_rows(form: Form, bias: bool, positions: int) -> None:
    x = 3 * normal(1, positions, 8) + normal(1, 1, 8, seed=7)
    r = x @ normal(1, 8, 2, seed=1) + 0.5 * normal(1, positions, 2, seed=2) + 1
    outcome = fitted(form(bias=bias), x, r)
    assert outcome.update is not None
    assert 0.5 < outcome.share <= 1
    matrix, shift = ridge(form, x[0], r[0], outcome.damping, bias=bias)
    matrix, shift = outcome.share * matrix, outcome.share * shift
    np.testing.assert_allclose(outcome.update.matrix[0], matrix, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(outcome.update.bias[0], shift, rtol=1e-3, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(10, 40), st.integers(1, 20), st.integers(1, 4), st.booleans(), st.integers(0, 1000)
)
def test_both_forms_agree(positions: int, inputs: int, outs: int, bias: bool, seed: int) -> None:
    """With more rows than inputs: with fewer, sums of single precision don't determine the rest.

    And with little damping, of which each form has its own.
    """
    x = normal(1, 4 * positions, inputs, seed=seed) + 1
    r = x @ normal(1, inputs, outs, seed=seed + 1) + normal(1, 4 * positions, outs, seed=seed + 2)
    first, second = (fitted(form(bias=bias), x, r) for form in FORMS)
    np.testing.assert_allclose(first.before, second.before, rtol=1e-4)
    dampings = (first.damping, second.damping)
    if first.update is None or second.update is None or max(dampings) > 1e-4:
        return
    np.testing.assert_allclose(first.after, second.after, rtol=1e-2)
    np.testing.assert_allclose(first.update.matrix, second.update.matrix, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(first.update.bias, second.update.bias, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("form", FORMS)
def test_the_damping_and_share_that_do_best_on_held_out_rows_are_taken(form: Form) -> None:
    x = normal(1, 40, 25)
    r = 0.3 * x @ normal(1, 25, 1, seed=1) + 2 * normal(1, 40, 1, seed=2)
    fit, held = slice(0, 30), slice(30, 40)
    errors = []
    for damping in DAMPINGS:
        matrix, shift = ridge(form, x[0, fit], r[0, fit], damping, bias=True)
        added = x[0, held] @ matrix + shift
        tried = [np.square(r[0, held] - a * added).sum(1).mean() for a in np.linspace(0, 1, 1001)]
        errors.append(min(tried))
    best = int(np.argmin(errors))
    assert best > 0
    outcome = fitted(form(bias=True), x, r)
    np.testing.assert_allclose(outcome.before, np.square(r[0, held]).sum(1).mean(), rtol=1e-5)
    if errors[best] < outcome.before:
        assert outcome.damping == DAMPINGS[best]
        np.testing.assert_allclose(outcome.after, errors[best], rtol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_of_what_half_carries_over_half_is_done(form: Form) -> None:
    """The rows that are fitted to miss twice as much as those held out."""
    x = normal(1, 4000, 4)
    r = x @ normal(1, 4, 2, seed=1)
    r[:, 3000:] /= 2
    outcome = fitted(form(bias=True), x, r)
    assert outcome.update is not None
    np.testing.assert_allclose(outcome.share, 0.5, rtol=1e-2)
    assert outcome.after < 1e-3 * outcome.before


@pytest.mark.parametrize("form", [*FORMS, BiasRegression, BatchNormRegression])
def test_what_does_not_help_on_held_out_rows_is_not_done(form: Form) -> None:
    """The rows that are fitted to say the opposite of those held out."""
    x = normal(1, 400, 4)
    r = x @ normal(1, 4, 2, seed=1) + 1
    r[:, 300:] *= -1
    known = {"matrix": normal(1, 4, 2, seed=3)} if form not in FORMS else {}
    outcome = fitted(form(**known, bias=True), x, r)
    assert outcome.update is None
    assert outcome.after == outcome.before


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: np.repeat(x[..., :4], 2, -1),  # every input twice
        lambda x: x * np.array([1, 0] * 4, np.float32),  # half of them dead
        lambda x: np.where(np.arange(8) % 2, x, np.float32(5)),  # half of them constant
        lambda x: np.zeros_like(x),
        lambda x: np.full_like(x, 3),
    ],
    ids=["twins", "dead", "constant", "all dead", "all constant"],
)
@pytest.mark.parametrize("bias", [True, False])
def test_singular_inputs_give_a_finite_update(
    form: Form, spoil: Callable[[Array], Array], bias: bool
) -> None:
    x = spoil(normal(1, 200, 8))
    r = x @ normal(1, 8, 3, seed=1) + np.float32(bias)
    outcome = fitted(form(bias=bias), x, r)
    if not r.any():
        assert outcome.update is None
        return
    assert outcome.update is not None
    assert np.isfinite(outcome.update.matrix).all()
    assert np.isfinite(outcome.update.bias).all()
    got = x @ outcome.update.matrix + outcome.update.bias
    assert np.square(r - got).mean() < 1e-4 * np.square(r).mean()


def test_groups_are_fitted_each_on_its_own() -> None:
    x, truth = normal(3, 400, 4), normal(3, 4, 2, seed=1)
    x[1] = 0  # a group that sees nothing
    shift = normal(3, 1, 2, seed=2)
    outcome = fitted(GramRegression(bias=True), x, x @ truth + shift)
    assert outcome.update is not None
    np.testing.assert_allclose(outcome.update.matrix[[0, 2]], truth[[0, 2]], atol=1e-3)
    np.testing.assert_allclose(outcome.update.matrix[1], 0, atol=1e-6)
    np.testing.assert_allclose(outcome.update.bias, shift[:, 0], atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mean", [1e2, 1e4])
def test_large_means_do_not_drown_small_variances(form: Form, mean: float) -> None:
    """What is missing has a large mean too: that of the channels that are gone."""
    x = normal(1, 300, 6) + np.float32(mean)
    r = (x - np.float32(mean)) @ normal(1, 6, 3, seed=1) + np.float32(mean)
    outcome = fitted(form(bias=True), x, r)
    assert outcome.update is not None
    got = x.astype(np.float64) @ outcome.update.matrix + outcome.update.bias
    wanted = r - r.mean(1, keepdims=True)
    assert np.square(r - got).sum() < 1e-4 * np.square(wanted).sum()
    assert abs(outcome.after) < 1e-3 * np.square(wanted).sum(2).mean()


# --- means and variances -------------------------------------------------------------------------


def test_bias_regression_gives_back_the_mean_by_hand() -> None:
    rows = np.array([[[1, 0], [0, 1], [1, 1], [0, 0]]], np.float32)
    matrix = np.array([[[1.0], [2.0]]], np.float32)
    residual = np.array([[[3.0], [5.0], [4.0], [4.0]]], np.float32)
    task = BiasRegression(matrix, bias=True)
    task.add(rows[:, :2], residual[:, :2], held_out=False)
    task.add(rows[:, 2:], residual[:, 2:], held_out=True)
    outcome = task.solve()
    assert outcome.update is not None
    np.testing.assert_array_equal(outcome.update.matrix, np.zeros((1, 2, 1)))
    np.testing.assert_allclose(outcome.update.bias, [[4.0]])
    np.testing.assert_allclose([outcome.before, outcome.after], [16.0, 0.0], atol=1e-12)


def test_batch_norm_regression_gives_back_mean_and_variance() -> None:
    """Results are 2 (x - 1): twice the deviation, another mean; for one output of two."""
    rows = normal(1, 400, 3)
    matrix = np.array([[[1, 0], [0, 1], [0, 1]]], np.float32)
    got = rows @ matrix
    wanted = got.copy()
    wanted[..., 0] = 2 * (got[..., 0] - 1)
    outcome = fitted(BatchNormRegression(matrix, bias=True), rows, wanted - got)
    assert outcome.update is not None
    new = rows @ (matrix + outcome.update.matrix) + outcome.update.bias
    np.testing.assert_allclose(new, wanted, atol=1e-3)
    assert outcome.after < 1e-6 * outcome.before


def test_batch_norm_regression_leaves_the_scale_of_what_does_not_vary() -> None:
    rows = np.ones((1, 40, 2), np.float32)
    matrix = np.array([[[1.0], [1.0]]], np.float32)
    residual = normal(1, 40, 1) + 3
    outcome = fitted(BatchNormRegression(matrix, bias=True), rows, residual)
    assert outcome.update is not None
    np.testing.assert_array_equal(outcome.update.matrix, np.zeros((1, 2, 1)))
    np.testing.assert_allclose(outcome.update.bias, [[residual.mean()]], rtol=1e-4)


@pytest.mark.parametrize("form", [BiasRegression, BatchNormRegression])
def test_without_a_place_for_the_mean_nothing_changes(form: Form) -> None:
    rows = normal(1, 40, 2)
    outcome = fitted(form(normal(1, 2, 2), bias=False), rows, np.ones((1, 40, 2), np.float32))
    assert outcome.update is None


# --- the sweep -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5, 70])
def test_the_sweep_is_the_closed_form(count: int) -> None:
    inputs, outs = 100, 3
    x = normal(1000, inputs) @ normal(inputs, inputs, seed=1)
    hessian = (x.T @ x / len(x)).astype(np.float64)
    matrix = normal(inputs, outs, seed=2).astype(np.float64)
    gone = np.random.default_rng(3).permutation(inputs)[:count]
    left = np.setdiff1d(np.arange(inputs), gone)
    want = np.zeros_like(matrix)
    want[left] = np.linalg.solve(hessian[np.ix_(left, left)], hessian[left] @ matrix)
    got = remove_inputs(matrix, hessian, gone)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)), st.integers(0, 12))
def test_the_sweep_does_not_depend_on_the_order_of_columns(order: list[int], count: int) -> None:
    x = normal(60, 12)
    hessian, matrix = (x.T @ x).astype(np.float64), normal(12, 2, seed=1).astype(np.float64)
    gone = np.array(order[:count], np.int64)
    first = remove_inputs(matrix, hessian, gone)
    np.testing.assert_allclose(first, remove_inputs(matrix, hessian, np.sort(gone)), atol=1e-8)
    turn = np.array(order)
    turned = remove_inputs(matrix[turn], hessian[np.ix_(turn, turn)], np.argsort(turn)[gone])
    np.testing.assert_allclose(turned, first[turn], atol=1e-8)
    assert not first[gone].any()
