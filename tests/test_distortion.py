"""Distortion of outputs, and the allocation that minimises it."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import spa_graph
from spa_graph.errors import BudgetError
from spa_graph.passes.allocate import Budget, Limits, allocate, allocate_by_distortion
from spa_graph.passes.reconstruct import helps, is_better
from spa_graph.passes.sensitivity import scaled
from spa_graph.passes.statistics.distortion import alignment, by_sample, distortion
from tests.models import network

CHAIN = """
net (float[N,4] x) => (float[N,3] y) <float[4,6] w1, float[6,5] w2, float[5,7] w3, float[7,3] w4>
{
    a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Relu(c)
    e = MatMul(d, w3) f = Relu(e) y = MatMul(f, w4)
}
"""
ONE = Limits(round_to=1)


def test_alignment_is_the_correlation_over_samples() -> None:
    rng = np.random.default_rng(0)
    want = rng.standard_normal((2, 4, 1)).astype(np.float32)
    got = want + rng.standard_normal(want.shape).astype(np.float32)
    batches = [[[batch] for batch in array] for array in (want, got)]
    assert alignment(*batches) == pytest.approx(np.corrcoef(want.ravel(), got.ravel())[0, 1])
    assert alignment(batches[0], [[3 * batch + 5] for batch in want]) == pytest.approx(1)
    assert alignment(batches[0], [[0 * batch + 5] for batch in want]) == 0
    assert alignment(batches[0], [[batch[:, 0]] for batch in want]) == 0


def test_distortion_is_a_share_of_the_variance_over_samples() -> None:
    want = [[np.array([[0.0, 1.0], [2.0, 1.0]], np.float32)]]
    got = [[np.array([[1.0, 1.0], [2.0, 1.0]], np.float32)]]
    assert distortion(want, got) == pytest.approx(0.5)  # 1 of (1 + 1) around the mean (1, 1)
    assert distortion(want, want) == 0
    mean = [[np.array([[1.0, 1.0], [1.0, 1.0]], np.float32)]]
    assert distortion(want, mean) == pytest.approx(1)


def test_samples_add_up_to_the_distortion_whatever_the_batches() -> None:
    rng = np.random.default_rng(0)
    want, got = rng.standard_normal((2, 6, 3)).astype(np.float32)
    parts = [[[array[:4]], [array[4:]]] for array in (want, got)]
    found = by_sample(*parts)
    spread = np.square(want - want.mean(0)).sum()
    np.testing.assert_allclose(found, np.square(want - got).sum(1) / spread, rtol=1e-5)
    assert distortion(*parts) == pytest.approx(found.sum())
    mixed = [[[rows, rows[:1]] for (rows,) in part] for part in parts]  # one row per batch
    assert len(by_sample(*mixed)) == 2
    assert distortion(*mixed) == pytest.approx(by_sample(*mixed).sum())


def test_a_repair_must_help_by_more_than_chance() -> None:
    before = np.array([1.0, 2.0, 3.0, 4.0])
    assert helps(before, before - 0.1)
    assert helps(before, before / 2)
    assert not helps(before, before)
    assert not helps(before, before + np.tile([1, -1.1], 2))  # by .05, give or take .6
    assert helps(np.array([1.0]), np.array([0.9]))
    assert helps(np.array([np.inf, 1.0]), before[:2])
    assert not helps(before[:2], np.array([np.inf, 1.0]))
    assert not helps(np.full(2, np.inf), np.full(2, np.inf))


def test_errors_but_for_shift_and_scale_are_what_correlation_leaves() -> None:
    rng = np.random.default_rng(0)
    want = rng.standard_normal((8, 3)).astype(np.float32)
    got = want + rng.standard_normal((8, 3)).astype(np.float32)
    batches = [[want[:5]], [want[5:]]], [[7 + 3 * got[:5]], [7 + 3 * got[5:]]]
    found = by_sample(*batches, scaled=True)
    assert found.sum() == pytest.approx(1 - alignment(*batches) ** 2)
    assert len(found) == 8
    opposite = [[-rows for rows in batch] for batch in batches[0]]
    assert by_sample(batches[0], opposite, scaled=True).sum() == pytest.approx(1)
    still = [[5 + 0 * rows for rows in batch] for batch in batches[0]]
    assert by_sample(batches[0], still, scaled=True).sum() == pytest.approx(1)
    other = [[rows[:, :1] for rows in batch] for batch in batches[0]]
    assert not np.isfinite(by_sample(batches[0], other, scaled=True)).any()
    crops = (
        [[np.zeros((1, 5, n), np.float32)] for n in (4, 3)],
        [[np.ones((1, n, 4), np.float32)] for n in (3, 5)],
    )
    assert by_sample(*crops, scaled=True).shape == (2,)


def test_a_repair_may_bring_back_proportions_first() -> None:
    """Outputs that are nearly in proportion may err more than ones that hardly vary."""
    rng = np.random.default_rng(0)
    want = rng.standard_normal((64, 4)).astype(np.float32)
    noise = rng.standard_normal((2, 64, 4)).astype(np.float32)
    small, large, wrong = 0.4 * noise[0], 1.3 * want + noise[1], -1.0 * noise[0]

    def better(before: NDArray[Any], after: NDArray[Any]) -> bool:
        return is_better([[want]], [[before]], [[after]])

    errors = [by_sample([[want]], [[each]]) for each in (small, large)]
    assert not helps(*errors) and not helps(*reversed(errors))
    assert better(small, large)
    assert better(wrong, small)  # the error alone
    assert not better(large, small)
    assert not better(small, 3 * large)  # in proportion, and far too large
    assert not better(small, small)


def test_outputs_count_alike_and_integers_do_not() -> None:
    small = np.array([[0.0], [1.0]], np.float32)
    large = 1000 * small
    labels = np.array([1, 2])
    whole = distortion([[small, large, labels]], [[1 - small, large, labels + 1]])
    assert whole == pytest.approx(0.5 * distortion([[small]], [[1 - small]]))


def test_another_shape_is_infinitely_far() -> None:
    assert distortion([[np.zeros((2, 3), "f")]], [[np.zeros((2, 2), "f")]]) == np.inf


def test_scaled_curves_have_the_measured_heights_and_never_fall() -> None:
    curve = np.array([0.0, 1.0, 2.0, 4.0, 8.0])
    found = scaled(curve, {1: 0.5, 3: 6.0})
    assert found[1] == pytest.approx(0.5)
    assert found[3] == pytest.approx(6.0)
    assert (np.diff(found) >= 0).all()
    assert (np.diff(scaled(curve, {1: 5.0, 3: 1.0})) >= 0).all()


def test_where_outputs_are_lost_the_curve_still_rises() -> None:
    """On data that hardly moves the outputs, to lose half of a group is to lose all that they say:
    it was measured that three quarters lose no more, which is no reason to remove these."""
    curve = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    found = scaled(curve, {1: 1.4, 2: 1.05, 3: 1.05})
    np.testing.assert_allclose(found, 1.4 * curve)
    found = scaled(curve, {1: 0.4, 2: 1.5, 3: 1.2})
    np.testing.assert_allclose(found, [0, 0.4, 1.5, 2.25, 3])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_allocation_is_near_the_best_and_uses_the_budget(seed: int, share: float) -> None:
    analysis = spa_graph.analyze(network(CHAIN))
    generator = np.random.default_rng(seed)
    scores = generator.random(analysis.coupling.count)
    sizes = [group.size for group in analysis.groups]
    curves = [np.append(0, np.cumsum(np.sort(generator.random(size)) ** 3)) for size in sizes]
    whole = np.zeros(len(sizes), bool)
    budget = Budget("flops", share)

    def loss(counts: tuple[int, ...]) -> float:
        return sum(curve[len(curve) - 1 - n] for curve, n in zip(curves, counts, strict=True))

    def counts_of(kept: np.ndarray) -> tuple[int, ...]:  # type: ignore[type-arg]
        return tuple(int(kept[group.start : group.stop].sum()) for group in analysis.groups)

    def ratio(counts: tuple[int, ...]) -> float:
        return analysis.cost.ratio("flops", np.array(counts))

    arguments = (analysis.coupling, analysis.cost, scores)
    found = counts_of(allocate_by_distortion(*arguments, curves, budget, ONE, whole))
    assert ratio(found) <= share
    for group, size in enumerate(sizes):  # no single channel more would fit
        more = tuple(n + (i == group) for i, n in enumerate(found))
        assert found[group] == size or ratio(more) > share
    every = product(*(range(1, size + 1) for size in sizes))
    best = min(loss(counts) for counts in every if ratio(counts) <= share)
    step = max(float(np.diff(curve[: len(curve) - 1]).max()) for curve in curves)
    assert loss(found) <= best + step
    ranked = counts_of(allocate(*arguments, budget, ONE, whole))
    assert loss(found) <= loss(ranked) + step


def test_whole_groups_and_floors_are_respected() -> None:
    analysis = spa_graph.analyze(network(CHAIN))
    scores = np.ones(analysis.coupling.count)
    curves = [np.zeros(group.size + 1) for group in analysis.groups]
    whole = np.array([True, False, False])
    arguments = (analysis.coupling, analysis.cost, scores, curves)
    limits = Limits(round_to=1, min_channels=2)
    kept = allocate_by_distortion(*arguments, Budget("flops", 0.6), limits, whole)
    counts = [int(kept[group.start : group.stop].sum()) for group in analysis.groups]
    assert counts[0] == analysis.groups[0].size
    assert min(counts) >= 2
    with pytest.raises(BudgetError, match="can't be reached"):
        allocate_by_distortion(*arguments, Budget("flops", 0.05), limits, whole)
