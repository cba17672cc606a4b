"""Every criterion, normaliser and aggregate against its definition, by hand."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.typing import NDArray

import spa_graph
from spa_graph.errors import OptionError
from spa_graph.passes.importance import AGGREGATES, CRITERIA, NORMALIZERS, score
from spa_graph.passes.options import Options
from tests.models import CHAIN, MLP, network, stored

Floats = NDArray[np.float64]

NORMALISED = """
net (float[N,3] x) => (float[N,2] y)
<float[5,3,1] w, float[5] gamma, float[5] beta, float[5] mean, float[5] var, float[5,2] last> {
    one = Constant<value_ints = [2]>()
    x3 = Unsqueeze(x, one)
    h = Conv(x3, w)
    n = BatchNormalization(h, gamma, beta, mean, var)
    s = Squeeze(n, one)
    y = MatMul(s, last)
}
"""

OF_WEIGHTS = sorted(
    name
    for name, make in CRITERIA.items()
    if not make(0).needs_data and not make(0).needs_gradients
)


def scores(
    text: str, criterion: str, *, aggregate: str = "sum", normalize: str = "none", seed: int = 0
) -> Floats:
    coupling = spa_graph.analyze(network(text)).coupling
    return score(coupling, criterion, aggregate=aggregate, normalize=normalize, seed=seed)


def mlp_rows() -> tuple[Floats, Floats]:
    """The weights of each of the 16 channels: into it, shape (16, 4), and out of it, (16, 3)."""
    weights = stored(network(MLP))
    return weights["w1"].T.astype(np.float64), weights["w2"].astype(np.float64)


def test_l1() -> None:
    into, out = mlp_rows()
    want = np.abs(into).sum(1) + np.abs(out).sum(1)
    np.testing.assert_allclose(scores(MLP, "l1"), want, rtol=1e-5)


def test_l2() -> None:
    into, out = mlp_rows()
    want = np.linalg.norm(into, axis=1) + np.linalg.norm(out, axis=1)
    np.testing.assert_allclose(scores(MLP, "l2"), want, rtol=1e-5)


def test_linf() -> None:
    into, out = mlp_rows()
    want = np.abs(into).max(1) + np.abs(out).max(1)
    np.testing.assert_allclose(scores(MLP, "linf"), want, rtol=1e-5)


def test_fpgm_is_the_sum_of_distances_to_all_others() -> None:
    want = np.zeros(16)
    for rows in mlp_rows():
        for channel in range(16):
            want[channel] += sum(np.linalg.norm(rows[channel] - other) for other in rows)
    np.testing.assert_allclose(scores(MLP, "fpgm"), want, rtol=1e-3)


def test_fpgm_finds_the_replaceable_channel() -> None:
    """Two equal channels in the middle of the others are the ones that can go."""
    values = np.array([[0, 0], [0, 0], [4, 0], [-4, 0], [0, 4], [0, -4]], np.float32)
    text = "net (float[N,2] x) => (float[N,1] y) <float[2,6] a, float[6,1] b>"
    model = network(text + "{ h = MatMul(x, a) y = MatMul(h, b) }",
                    values={"a": values.T, "b": np.ones((6, 1), np.float32)})  # fmt: skip
    found = score(spa_graph.analyze(model).coupling, "fpgm")
    assert set(np.argsort(found)[:2].tolist()) == {0, 1}


def test_lamp_is_a_share_of_what_is_left() -> None:
    into, out = mlp_rows()
    norms = np.linalg.norm(into, axis=1) + np.linalg.norm(out, axis=1)
    want = [s**2 / sum(other**2 for other in norms if other >= s) for s in norms]
    np.testing.assert_allclose(scores(MLP, "lamp"), want, rtol=1e-5)
    assert scores(MLP, "lamp").max() == pytest.approx(1)


def test_bn_scale_looks_at_the_scales_only() -> None:
    gamma = stored(network(NORMALISED))["gamma"]
    np.testing.assert_allclose(scores(NORMALISED, "bn-scale"), np.abs(gamma), rtol=1e-6)


def test_bn_scale_falls_back_on_weights() -> None:
    np.testing.assert_array_equal(scores(MLP, "bn-scale"), scores(MLP, "l1"))


def test_biases_and_statistics_do_not_count() -> None:
    weights = stored(network(NORMALISED))
    want = sum(np.abs(rows).reshape(5, -1).sum(1) for rows in
               (weights["w"], weights["gamma"], weights["last"]))  # fmt: skip
    np.testing.assert_allclose(scores(NORMALISED, "l1"), want, rtol=1e-5)


def test_random_follows_the_seed() -> None:
    first, again, other = (scores(MLP, "random", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    assert len(set(first.tolist())) == 16


def test_several_positions_of_a_weight_belong_to_one_channel() -> None:
    """Flattening 2x2 pixels: each channel owns 4 rows of the linear layer."""
    text = """
    net (float[N,3,2,2] x) => (float[N,2] y) <float[6,3,1,1] w1, float[24,2] w2>
    { h = Conv(x, w1) f = Flatten(h) y = MatMul(f, w2) }
    """
    weights = stored(network(text))
    want = np.abs(weights["w1"]).reshape(6, -1).sum(1) + np.abs(weights["w2"]).reshape(6, -1).sum(1)
    np.testing.assert_allclose(scores(text, "l1"), want, rtol=1e-5)
    per_axis = [np.linalg.norm(weights[name].reshape(6, -1), axis=1) for name in ("w1", "w2")]
    np.testing.assert_allclose(scores(text, "l2"), sum(per_axis), rtol=1e-5)


def test_a_shared_weight_counts_once() -> None:
    shared = """
    net (float[N,4] x, float[N,4] z) => (float[N,3] y) <float[4,8] w1, float[8,3] w2>
    { a = MatMul(x, w1) b = MatMul(z, w1) s = Add(a, b) y = MatMul(s, w2) }
    """
    weights = stored(network(shared))
    want = np.abs(weights["w1"]).sum(0) + np.abs(weights["w2"]).sum(1)
    np.testing.assert_allclose(scores(shared, "l1"), want, rtol=1e-5)


# --- normalisers and aggregates ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("none", [1, 2, 3, 6]),
        ("sum", [1 / 12, 2 / 12, 3 / 12, 6 / 12]),
        ("mean", [1 / 3, 2 / 3, 1, 2]),
        ("max", [1 / 6, 2 / 6, 3 / 6, 1]),
        ("gaussian", (np.array([1, 2, 3, 6]) - 3) / np.sqrt(3.5)),
    ],
)
def test_normalizers(name: str, want: list[float]) -> None:
    np.testing.assert_allclose(NORMALIZERS[name](np.array([1.0, 2, 3, 6])), want)
    assert np.isfinite(NORMALIZERS[name](np.zeros(4))).all()


@pytest.mark.parametrize(
    ("name", "want"),
    [("sum", [4, 6]), ("mean", [2, 3]), ("max", [3, 4]), ("prod", [3, 8]),
     ("l2", [np.sqrt(10), np.sqrt(20)])],
)  # fmt: skip
def test_aggregates(name: str, want: list[float]) -> None:
    np.testing.assert_allclose(AGGREGATES[name](np.array([[1.0, 2], [3, 4]])), want)


def test_all_of_them_are_tested() -> None:
    assert set(OF_WEIGHTS) == {"l1", "l2", "linf", "random", "bn-scale", "fpgm", "lamp"}
    assert set(NORMALIZERS) == {"none", "sum", "mean", "max", "gaussian"}
    assert set(AGGREGATES) == {"sum", "mean", "max", "prod", "l2"}


@pytest.mark.parametrize("normalize", ["sum", "mean", "max", "gaussian"])
def test_a_layer_of_large_weights_is_not_more_important(normalize: str) -> None:
    model = network(CHAIN)
    scaled = network(CHAIN, values=stored(model) | {"w1": 1000 * stored(model)["w1"]})
    first, second = (
        score(spa_graph.analyze(one).coupling, "l2", normalize=normalize) for one in (model, scaled)
    )
    np.testing.assert_allclose(first, second, rtol=1e-4)


@pytest.mark.parametrize("criterion", OF_WEIGHTS)
@pytest.mark.parametrize("normalize", sorted(NORMALIZERS))
@pytest.mark.parametrize("aggregate", sorted(AGGREGATES))
def test_every_combination_gives_numbers(criterion: str, normalize: str, aggregate: str) -> None:
    found = scores(CHAIN, criterion, aggregate=aggregate, normalize=normalize)
    assert found.shape == (20,)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("criterion", sorted(set(OF_WEIGHTS) - {"random"}))
def test_channels_of_zero_weights_go_first(criterion: str) -> None:
    weights = {name: array.copy() for name, array in stored(network(NORMALISED)).items()}
    weights["var"] = np.abs(weights["var"])
    for name in ("w", "gamma", "last"):
        weights[name][[1, 3]] = 0
    if criterion == "fpgm":  # it looks for channels that others can stand in for, not for zeros
        weights["w"][[0, 2, 4]] = np.eye(3, dtype=np.float32)[:, :, None]
        weights["last"][[0, 2, 4]] = [[1, 0], [0, 1], [-1, -1]]
    model = network(NORMALISED, values=weights)
    result = spa_graph.prune(model, ratio=0.4, criterion=criterion, round_to=1)
    assert result.plan.kept["w"][0].tolist() == [0, 2, 4]


def test_quantised_weights_count_as_what_they_stand_for() -> None:
    """Every int8 channel uses its full range; only its scale tells which is large."""
    model = network(
        """net (float[N,2] x) => (float[N,2] y)
        <int8[3,2] w = {127, -127, 100, -127, 127, 50}, float[3] s = {0.1, 2.0, 0.5},
         int8[3] z = {0, 0, 0}, float[2,3] v = {1, 1, 1, 1, 1, 1}>
        {
            real = DequantizeLinear<axis=0>(w, s, z)
            h = Gemm<transB=1>(x, real)
            r = Relu(h)
            y = Gemm<transB=1>(r, v)
        }"""
    )
    analysis = spa_graph.analyze(model)
    scores = score(analysis.coupling, "l1", normalize="none", aggregate="sum")
    np.testing.assert_allclose(scores, np.array([25.4, 454.0, 88.5]) + 2.0, rtol=1e-6)


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["taylor", "snip", "head-importance"])
def test_criteria_from_gradients_say_what_they_lack(name: str) -> None:
    with pytest.raises(OptionError, match=f"`{name}` needs gradients: give --data and --loss"):
        scores(MLP, name)
    with pytest.raises(OptionError, match=f"`{name}` needs gradients: give --data and --loss"):
        spa_graph.prune(network(MLP), flops=0.5, criterion=name)


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch weren't installed."""
    for module in [module for module in sys.modules if module.startswith("spa_graph.torch")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.mark.usefixtures("no_torch")
def test_without_torch_matched_samples_say_what_to_install() -> None:
    with pytest.raises(OptionError, match=r"needs gradients: pip install 'spa-prune\[torch\]'"):
        spa_graph.prune(network(MLP), flops=0.5, calibrate="data-free:matched")


@pytest.mark.usefixtures("no_torch")
def test_without_torch_gradients_say_what_to_install() -> None:
    given = {"data": {"x": np.zeros((2, 4)), "t": np.zeros(2)}, "loss": "mse"}
    with pytest.raises(OptionError, match=r"needs torch: pip install 'spa-prune\[torch\]'"):
        spa_graph.prune(network(MLP), flops=0.5, **given)


def test_the_normalisers_take_the_size_of_negative_importances() -> None:
    values = np.array([-1.0, 3, -4])
    np.testing.assert_allclose(NORMALIZERS["sum"](values), values / 8)
    np.testing.assert_allclose(NORMALIZERS["mean"](values), values * 3 / 8)
    np.testing.assert_allclose(NORMALIZERS["max"](values), values / 4)


@pytest.mark.parametrize("budget", [{"flops": 0.25}, {"params": 0.25}, {"ratio": 0.75}])
def test_half_way_to_a_budget_keeps_the_root_of_the_share(budget: dict[str, float]) -> None:
    name, value = budget.popitem()
    half = Options(**{name: value}).towards(0.5)  # type: ignore[arg-type]
    assert getattr(half, name) == pytest.approx(0.5) and half.allocation == "global"
