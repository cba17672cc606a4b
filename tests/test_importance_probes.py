"""Gates on channels, and the criteria that run the network with them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import spa_graph
from spa_graph.errors import ModelError
from spa_graph.passes.importance import CRITERIA, bonsai, make_criterion, score, zeroth_order
from spa_graph.passes.probing import Gates
from spa_graph.passes.statistics.distortion import distortion
from tests.models import network, outputs, stored
from tests.test_importance_data import CONV, TEXT, calibrated, scores
from tests.test_importance_features import (
    EVERY,
    FLATTENED,
    GROUPED,
    SEQUENCE,
    TWO_READERS,
    computed,
    options,
)

Array = np.ndarray[Any, Any]
WITHOUT_LOSS = sorted(name for name, make in CRITERIA.items() if not make(0).needs_gradients)
PROBED = sorted(name for name, make in CRITERIA.items() if make(0).probes)
TRANSPOSED = """
net (float[N,3,6,6] x) => (float[N,6,8,8] y) <float[8,3,3,3] w1, float[8,3,3,3] w2>
{ h = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(h) y = ConvTranspose<group=2>(r, w2) }
"""
EINSUM = """
net (float[N,4] x) => (float[N,3,2] y) <float[4,8] w1, float[8,3,2] w2>
{ h = MatMul(x, w1) r = Relu(h) y = Einsum<equation="nc,cop->nop">(r, w2) }
"""
NORMALISED = """
net (float[N,7,4] x) => (float[N,7,3] y) <float[4,8] w1, float[8] s, float[8] b, float[8,3] w2>
{ h = MatMul(x, w1) n = LayerNormalization(h, s, b) r = Relu(n) y = MatMul(r, w2) }
"""
DEEP = """
net (float[N,4] x) => (float[N,3] y) <float[4,8] w1, float[8,6] w2, float[6,3] w3>
{ h = MatMul(x, w1) r = Relu(h) m = MatMul(r, w2) t = Tanh(m) y = MatMul(t, w3) }
"""


def scaled(text: str, model: Any, gates: Array) -> Any:
    """The network whose last weights are scaled where they meet a channel."""
    values = stored(model)
    for name in ("w2", "w3") if text is TWO_READERS else ("w2",):
        axis = 1 if text in (CONV, TWO_READERS, GROUPED) else 0
        every = np.repeat(gates, 4) if text is FLATTENED else gates
        shape = [-1 if at == axis else 1 for at in range(values[name].ndim)]
        values[name] = (values[name] * every.reshape(shape)).astype(np.float32)
    return network(text, values=values)


@pytest.mark.parametrize("text", [*EVERY, NORMALISED, TRANSPOSED])
def test_gates_scale_the_weights_that_meet_a_channel(tmp_path: Any, text: str) -> None:
    analysis, found, model = calibrated(tmp_path, text, **options(text))
    network_with_gates = Gates(analysis, found.layers, found.fitting)
    count = analysis.coupling.count
    assert network_with_gates.gated.all()
    gates = np.random.default_rng(1).uniform(0, 2, count)
    gates[0] = 0
    every = np.tile(gates, 2) if text is TRANSPOSED else gates  # two groups, read alike
    expected = lost(model, scaled(text, model, every), found)
    assert expected > 0
    assert network_with_gates.distortion(gates) == pytest.approx(expected, rel=1e-4)
    moved = network_with_gates.outputs(gates) - network_with_gates.outputs(np.ones(count))
    assert np.square(moved).sum() == pytest.approx(expected, rel=1e-4)
    assert network_with_gates.distortion(np.ones(count)) == 0


def lost(model: Any, less: Any, found: Any) -> float:
    want, got = ([outputs(each, feeds) for feeds in found.fitting] for each in (model, less))
    return distortion(want, got)


def by_weight(analysis: Any, numbers: Array) -> Array:
    """The scores in `DEEP` of the 8 channels behind `w1`, then those of the 6 behind `w2`."""
    groups = sorted(analysis.groups, key=lambda group: -group.size)
    assert [group.size for group in groups] == [8, 6]
    return np.concatenate([numbers[group.start : group.stop] for group in groups])


class Toy:
    """Channels that act on the outputs by a matrix; the loss is additive or that of the outputs."""

    def __init__(self, matrix: Array, groups: int = 1) -> None:
        self.matrix = matrix
        self.gated = np.ones(len(matrix), bool)
        ends = np.linspace(0, len(matrix), groups + 1).astype(int).tolist()
        self.groups = [slice(a, b) for a, b in pairwise(ends)]
        self.runs = 0

    def outputs(self, gates: Array) -> Array:
        self.runs += 1
        return np.asarray(gates @ self.matrix)

    def distortion(self, gates: Array) -> float:
        self.runs += 1
        return float((1 - gates) @ np.square(self.matrix).sum(1))


def measured(name: str, toy: Any, seed: int = 0) -> Array:
    criterion: Any = make_criterion(name, seed)
    told: list[tuple[int, int]] = []
    found = criterion.measured(toy, lambda done, total: told.append((done, total)))
    assert told == [(done, len(told)) for done in range(1, len(told) + 1)]
    return np.asarray(found)


# --- zeroth-order --------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 3])
def test_zeroth_order_is_the_derivative_of_the_outputs(groups: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((24, 50))
    toy = Toy(matrix, groups)
    found = measured("zeroth-order", toy)
    np.testing.assert_allclose(found, np.square(matrix).sum(1), rtol=1e-9)
    assert toy.runs == 24 + 1


def test_zeroth_order_of_a_network_is_by_its_definition(tmp_path: Any) -> None:
    analysis, found, model = calibrated(tmp_path, TEXT, criterion="zeroth-order", samples=16)
    x, w2 = computed(model, found, "r"), stored(model)["w2"].astype(np.float64)
    y = x @ w2
    derivative = np.square(x).sum(0) * np.square(w2).sum(1)
    want = derivative / np.square(y - y.mean(0)).sum()
    np.testing.assert_allclose(scores(analysis, found), want, rtol=1e-3)


def test_zeroth_order_sees_the_slope_of_later_layers(tmp_path: Any) -> None:
    analysis, found, model = calibrated(tmp_path, DEEP, criterion="zeroth-order", samples=16)
    r, t, y = (computed(model, found, name) for name in "rty")
    w2, w3 = (stored(model)[name].astype(np.float64) for name in ("w2", "w3"))
    first = [np.square((r[:, [c]] * w2[c] * (1 - t**2)) @ w3).sum() for c in range(8)]
    second = np.square(t).sum(0) * np.square(w3).sum(1)
    want = np.concatenate([first, second]) / np.square(y - y.mean(0)).sum()
    np.testing.assert_allclose(by_weight(analysis, scores(analysis, found)), want, rtol=0.05)


def test_with_fewer_directions_the_gradient_is_right_on_average() -> None:
    generator = np.random.default_rng(0)
    total = np.zeros((6, 6))
    for _ in range(2000):
        ways = zeroth_order.directions(generator, 6, 2)
        assert ways.shape == (2, 6)
        np.testing.assert_allclose(ways @ ways.T, 6 * np.eye(2), atol=1e-9)
        total += ways.T @ ways / 2 / 2000
    np.testing.assert_allclose(total, np.eye(6), atol=0.15)


def test_zeroth_order_is_bounded_and_still_finds_the_largest() -> None:
    matrix = 0.1 * np.random.default_rng(0).standard_normal((2000, 5))
    matrix[::100] *= 100
    toy = Toy(matrix, 4)
    found = measured("zeroth-order", toy)
    assert toy.runs == zeroth_order.DIRECTIONS + 1
    for own in toy.groups:
        first = np.argsort(-found[own])[:5] + own.start
        assert (first % 100 == 0).sum() >= 4


def test_outputs_that_change_their_size_are_refused() -> None:
    class Growing(Toy):
        def outputs(self, gates: Array) -> Array:
            return np.zeros(len(super().outputs(gates)) + self.runs)

    with pytest.raises(ModelError, match="depends on its data; choose another criterion"):
        measured("zeroth-order", Growing(np.eye(3)))


# --- bonsai --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count"), [(16, 40), (64, 64), (200, 10), (2, 4), (1, 4)])
def test_subnetworks_lack_every_channel_equally_often(size: int, count: int) -> None:
    gone = bonsai.masks(np.random.default_rng(0), size, count)
    assert gone.shape == (count, size)
    assert len(set(gone.sum(1).tolist())) == 1
    absent = gone.sum(0)
    assert absent.min() >= 1
    assert absent.max() - absent.min() <= 1


def refitted(gone: Array, losses: Array, penalty: float) -> tuple[Array, float, float]:
    """Ridge regression in its primal form: coefficients, mean of the losses and of the masks."""
    inputs = gone - gone.mean(0)
    gram = inputs.T @ inputs + penalty * np.eye(gone.shape[1])
    return np.linalg.solve(gram, inputs.T @ (losses - losses.mean())), losses.mean(), gone.mean(0)


@pytest.mark.parametrize("shape", [(30, 8), (12, 20)])
def test_bonsai_is_the_ridge_regression_that_predicts_others_best(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(3)
    gone = bonsai.masks(generator, shape[1], shape[0])
    losses = gone @ generator.random(shape[1]) + 0.1 * generator.standard_normal(shape[0])
    inputs = gone - gone.mean(0)
    scale = np.trace(inputs @ inputs.T) / shape[0]
    errors = []
    for penalty in bonsai.PENALTIES * scale:
        error = 0.0
        for out in range(shape[0]):
            rest = np.arange(shape[0]) != out
            slope, mean, centre = refitted(gone[rest], losses[rest], penalty)
            error += (losses[out] - mean - (gone[out] - centre) @ slope) ** 2
        errors.append(error)
    slope, mean, centre = refitted(gone, losses, scale * bonsai.PENALTIES[np.argmin(errors)])
    want = slope + (mean - centre @ slope) / gone[0].sum()  # predicts the same: rows sum alike
    np.testing.assert_allclose(bonsai.ridge(gone, losses), want, rtol=1e-6)


def test_bonsai_finds_what_each_channel_loses() -> None:
    matrix = np.random.default_rng(0).standard_normal((48, 4))
    toy = Toy(matrix, 3)
    np.testing.assert_allclose(measured("bonsai", toy), np.square(matrix).sum(1), rtol=0.01)
    assert toy.runs <= bonsai.SUBNETWORKS + 3


def test_bonsai_leaves_out_what_cannot_be_compared() -> None:
    class Breaking(Toy):
        def distortion(self, gates: Array) -> float:
            return np.inf if gates[0] == 0 else super().distortion(gates)

    found = measured("bonsai", Breaking(np.eye(40)))
    np.testing.assert_allclose(found[1:], 1, rtol=0.1)
    assert np.isfinite(found).all()
    broken = Breaking(np.eye(1))
    np.testing.assert_array_equal(measured("bonsai", broken), [0])


def test_bonsai_of_a_network_is_the_loss_of_channels_that_go_alone(tmp_path: Any) -> None:
    """With 5% of 8 channels, one is absent at a time, and its loss is known."""
    analysis, found, model = calibrated(tmp_path, TEXT, criterion="bonsai", samples=16)
    x, w2 = computed(model, found, "r"), stored(model)["w2"].astype(np.float64)
    y = x @ w2
    want = np.square(x).sum(0) * np.square(w2).sum(1) / np.square(y - y.mean(0)).sum()
    np.testing.assert_allclose(scores(analysis, found), want, rtol=0.01)


def test_bonsai_sees_what_becomes_of_a_loss_in_later_layers(tmp_path: Any) -> None:
    analysis, found, model = calibrated(tmp_path, DEEP, criterion="bonsai", samples=16)
    values = stored(model)
    want = []
    for name, count in (("w2", 8), ("w3", 6)):
        for channel in range(count):
            less = values[name].copy()
            less[channel] = 0
            want.append(lost(model, network(DEEP, values={**values, name: less}), found))
    np.testing.assert_allclose(by_weight(analysis, scores(analysis, found)), want, rtol=0.01)


# --- both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", PROBED)
@pytest.mark.parametrize("text", EVERY)
def test_of_channels_that_act_linearly_it_is_what_the_outputs_lose(
    tmp_path: Any, criterion: str, text: str
) -> None:
    """All that reads a channel loses it together; outputs that are linear in a gate agree."""
    given = {"criterion": criterion, "samples": 16, **options(text)}
    analysis, found, model = calibrated(tmp_path, text, **given)
    alone = 1 - np.eye(analysis.coupling.count)
    want = [lost(model, scaled(text, model, gates), found) for gates in alone]
    np.testing.assert_allclose(scores(analysis, found), want, rtol=0.01)


@pytest.mark.parametrize("criterion", PROBED)
@pytest.mark.parametrize("text", [CONV, SEQUENCE, FLATTENED, GROUPED, TWO_READERS])
def test_only_the_seed_decides(tmp_path: Any, criterion: str, text: str) -> None:
    given = {"criterion": criterion, **options(text)}
    first, again = (scores(*calibrated(tmp_path, text, seed=3, **given)[:2]) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.isfinite(first).all()
    assert first.min() < first.max()


@pytest.mark.parametrize("criterion", PROBED)
@pytest.mark.parametrize("text", [TEXT, CONV, FLATTENED])
def test_constant_features_are_no_trouble(tmp_path: Any, criterion: str, text: str) -> None:
    still = {"w1": np.zeros_like(stored(network(text))["w1"])}
    analysis, found, _ = calibrated(tmp_path, text, values=still, criterion=criterion)
    np.testing.assert_array_equal(scores(analysis, found), 0)


@pytest.mark.parametrize("criterion", PROBED)
def test_half_precision_tells_channels_apart(tmp_path: Any, criterion: str) -> None:
    single, half = (
        scores(*calibrated(tmp_path, text, values=values, criterion=criterion)[:2])
        for text, values in (
            (TEXT, stored(network(TEXT))),
            (TEXT.replace("float[", "float16["), halved(TEXT)),
        )
    )
    np.testing.assert_allclose(half, single, rtol=0.1)


def halved(text: str) -> dict[str, Array]:
    return {name: array.astype(np.float16) for name, array in stored(network(text)).items()}


@pytest.mark.parametrize("criterion", [*PROBED, "obspa", "activation"])
def test_channels_that_no_linear_layer_reads_are_scored_by_weights(
    tmp_path: Any, criterion: str
) -> None:
    analysis, found, _ = calibrated(tmp_path, EINSUM, criterion=criterion)
    want = score(analysis.coupling, "l1", normalize="none", aggregate="sum")
    np.testing.assert_array_equal(scores(analysis, found), want)


@pytest.mark.parametrize("criterion", WITHOUT_LOSS)
@pytest.mark.parametrize("groups", ["groups", "within"])
def test_grouped_transposed_convolutions_are_read(criterion: str, groups: str) -> None:
    made = {"criterion": criterion, "groups": groups, "calibrate": "data-free", "samples": 16}
    report = spa_graph.prune(network(TRANSPOSED), ratio=0.5, **made).report
    assert report["ratio"]["flops"] < 1
