"""Criteria from gradients against their definitions, on a network small enough to differentiate by
hand: y = W2 tanh(W1 x), with the mean squared error for the loss."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import spa_graph.torch as spa  # noqa: E402
from spa_graph.passes.importance import AGGREGATES, CRITERIA, NORMALIZERS, hap, obd, score  # noqa: E402  # noqa: E402
from spa_graph.passes.importance import hutchinson as estimate  # noqa: E402
from spa_graph.passes.importance.base import make_criterion  # noqa: E402
from spa_graph.torch.gradients import Gradients  # noqa: E402
from spa_graph.torch.objective import make_objective  # noqa: E402
from spa_graph.torch.pipeline import differentiated  # noqa: E402
from tests.torch.torch_networks import Block, Residual, Tied, settled  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
FROM_GRADIENTS = sorted(name for name, make in CRITERIA.items() if make(0).needs_gradients)
Array = np.ndarray[Any, Any]
SIZES = (3, 4, 2)


def hidden() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False)]
    return nn.Sequential(*layers).double()


def batches(seed: int = 1) -> list[tuple[Any, Any]]:
    """Five samples, in batches of three and two."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    t = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    return [(x[:3], t[:3]), (x[3:], t[3:])]


def everything() -> tuple[Array, Array]:
    x, t = (torch.cat(each).numpy() for each in zip(*batches(), strict=True))
    return x, t


def weights(model: nn.Module) -> tuple[Array, Array]:
    return model[0].weight.detach().numpy().copy(), model[2].weight.detach().numpy().copy()


def by_hand(w1: Array, w2: Array, x: Array, t: Array) -> tuple[Array, Array]:
    """The gradient of the mean squared error by W1 and W2."""
    h = np.tanh(x @ w1.T)
    error = 2 * (h @ w2.T - t) / t.size
    return (error @ w2 * (1 - h**2)).T @ x, error.T @ h


def hessian(w1: Array, w2: Array, x: Array, t: Array) -> Array:
    """By central differences of the gradient; over the elements of W1, then of W2."""
    flat = np.concatenate([w1.ravel(), w2.ravel()])

    def gradient(at: Array) -> Array:
        found = by_hand(at[: w1.size].reshape(w1.shape), at[w1.size :].reshape(w2.shape), x, t)
        return np.concatenate([each.ravel() for each in found])

    steps = 1e-5 * np.eye(flat.size)
    return np.array([(gradient(flat + s) - gradient(flat - s)) / 2e-5 for s in steps])


def apart(flat: Array, w1: Array) -> tuple[Array, Array]:
    return flat[: w1.size].reshape(w1.shape), flat[w1.size :].reshape(2, 4)


def network(model: nn.Module, data: Any, loss: Any = "mse", example: Any = None) -> Gradients:
    analysis = spa.analyze(model, data[0][0] if example is None else example)
    kept = np.ones(analysis.coupling.count, bool)
    return Gradients(differentiated(analysis), make_objective(data, loss, None), kept)


def scores(
    name: str, model: nn.Module | None = None, data: Any = None, loss: Any = "mse", **how: Any
) -> Array:
    """The importance of each channel; the sum of what its parameters have, unless told."""
    model, data = model or hidden(), data or batches()
    criterion: Any = make_criterion(name)
    found = network(model, data, loss)
    criterion.differentiate(found, lambda *_: None)
    how = {"aggregate": "sum", "normalize": "none"} | how
    return score(found._network.coupling, criterion, **how)


def summed(first: Array, second: Array) -> Array:
    """Over the rows of W1 and the columns of W2: what goes with each hidden channel."""
    return first.sum(1) + second.sum(0)


def test_snip_is_weight_times_gradient() -> None:
    w1, w2 = weights(hidden())
    g1, g2 = by_hand(w1, w2, *everything())
    np.testing.assert_allclose(scores("snip"), summed(abs(w1 * g1), abs(w2 * g2)), rtol=1e-6)


@pytest.mark.parametrize("name", ["grasp", "crop", "crop-it"])
def test_grasp_and_crop_are_weight_times_curved_gradient(name: str) -> None:
    w1, w2 = weights(hidden())
    g = np.concatenate([each.ravel() for each in by_hand(w1, w2, *everything())])
    c1, c2 = apart(hessian(w1, w2, *everything()) @ g, w1)
    sign: Any = np.asarray if name == "grasp" else np.abs
    want = summed(sign(w1 * c1), sign(w2 * c2))
    assert (w1 * c1 < 0).any()  # signs matter
    np.testing.assert_allclose(scores(name), want, rtol=1e-5, atol=1e-9)


def test_synflow_is_the_flow_through_positive_weights() -> None:
    w1, w2 = (abs(each) for each in weights(hidden()))
    h = np.tanh(w1.sum(1))  # inputs of ones; the first batch has three samples
    through = w1 * ((1 - h**2) * w2.sum(0))[:, None]
    np.testing.assert_allclose(scores("synflow"), 3 * summed(through, w2 * h), rtol=1e-6)


def test_taylor_is_the_squared_change_of_the_loss_of_each_batch() -> None:
    w1, w2 = weights(hidden())
    want = np.zeros(4)
    for x, t in batches():
        g1, g2 = by_hand(w1, w2, x.numpy(), t.numpy())
        want += ((w1 * g1).sum(1) ** 2 + (w2 * g2).sum(0) ** 2) / 2
    np.testing.assert_allclose(scores("taylor"), want, rtol=1e-6)


def single_gradients() -> list[tuple[Array, Array]]:
    w1, w2 = weights(hidden())
    return [by_hand(w1, w2, x[None], t[None]) for x, t in zip(*everything(), strict=True)]


def test_fisher_is_squared_weights_times_mean_squared_gradients_of_samples() -> None:
    w1, w2 = weights(hidden())
    f1, f2 = (np.mean([g[i] ** 2 for g in single_gradients()], axis=0) for i in (0, 1))
    want = summed(w1**2 * f1, w2**2 * f2) / 2
    np.testing.assert_allclose(scores("fisher"), want, rtol=1e-6)


def test_oba_is_the_second_order_share_of_a_channel() -> None:
    w1, w2 = weights(hidden())
    h = hessian(w1, w2, *everything())
    c1, c2 = apart(h @ np.concatenate([w1.ravel(), w2.ravel()]), w1)
    want = abs((w1 * c1).sum(1)) / 2 + abs((w2 * c2).sum(0)) / 2
    np.testing.assert_allclose(scores("oba"), want, rtol=1e-5)


class Quadratic:
    """A network whose Hessian is known."""

    def __init__(self, curvature: Array) -> None:
        self.curvature = curvature

    def weights(self) -> dict[str, Array]:
        return {"w": np.ones(len(self.curvature))}

    def product(self, vector: Any) -> dict[str, Array]:
        return {"w": self.curvature @ vector["w"]}


def test_the_diagonal_of_the_hessian_is_estimated(monkeypatch: Any) -> None:
    def quiet(*_: int) -> None: ...

    curvature = np.diag([1.0, -2, 3])
    found = estimate.diagonal(Quadratic(curvature), 0, quiet)["w"]  # type: ignore[arg-type]
    np.testing.assert_allclose(found, [1, -2, 3])  # exact where nothing else is
    curvature = curvature + 0.5 * (1 - np.eye(3))
    monkeypatch.setattr(estimate, "PROBES", 4000)
    found = estimate.diagonal(Quadratic(curvature), 0, quiet)["w"]  # type: ignore[arg-type]
    deviation = np.sqrt(2 * 0.5**2 / 4000)
    assert 0 < np.abs(found - [1, -2, 3]).max() < 5 * deviation


def test_obd_and_hap_weigh_by_curvature(monkeypatch: Any) -> None:
    w1, w2 = weights(hidden())
    d1, d2 = apart(np.diag(hessian(w1, w2, *everything())).copy(), w1)
    d1[1] *= -1  # as the estimate may be
    exact = {"0.weight": d1, "2.weight": d2}
    for module in (obd, hap):
        monkeypatch.setattr(module, "diagonal", lambda *_: exact)
    want = abs((w1**2 * d1).sum(1)) / 2 + abs((w2**2 * d2).sum(0)) / 2
    np.testing.assert_allclose(scores("obd"), want, rtol=1e-6)
    want = abs(d1.sum(1)) / (2 * 3) * (w1**2).sum(1) + abs(d2.sum(0)) / (2 * 2) * (w2**2).sum(0)
    np.testing.assert_allclose(scores("hap"), want, rtol=1e-6)


def test_hutchinsons_products_are_those_of_the_hessian() -> None:
    w1, w2 = weights(hidden())
    h = hessian(w1, w2, *everything())
    found = network(hidden(), batches())
    vector = np.random.default_rng(0).standard_normal(20)
    v1, v2 = apart(vector, w1)
    got = found.product({"0.weight": v1, "2.weight": v2})
    c1, c2 = apart(h @ vector, w1)
    np.testing.assert_allclose(got["0.weight"], c1, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(got["2.weight"], c2, rtol=1e-5, atol=1e-9)


def test_head_importance_is_the_derivative_by_a_gate() -> None:
    _, w2 = weights(hidden())
    want = np.mean([abs((w2 * g2).sum(0)) for _, g2 in single_gradients()], axis=0)
    np.testing.assert_allclose(scores("head-importance"), want, rtol=1e-6)


def test_head_importance_of_heads_is_that_of_gates_on_their_outputs() -> None:
    """Gates on what the output projection reads, head by head; Michel et al., section 4.1."""
    model = settled(Block()).double()
    x = torch.randn(3, 5, 32, dtype=torch.float64)
    target = torch.randn(3, 5, 32, dtype=torch.float64)
    analysis = spa.analyze(model, x)
    heads = next(s for s in analysis.structures if s.kind == "heads")
    group = analysis.groups[analysis.structures.index(heads)]
    got = scores("head-importance", model, [(x, target)])[group.start : group.stop]
    gates = torch.ones(group.size, dtype=torch.float64, requires_grad=True)
    model.attention.proj.register_forward_pre_hook(
        lambda _, given: given[0] * gates.repeat_interleave(32 // group.size)
    )
    slopes = [
        torch.autograd.grad(nn.functional.mse_loss(model(x[i : i + 1]), target[i : i + 1]), gates)
        for i in range(3)
    ]
    want = torch.stack([each[0].abs() for each in slopes]).mean(0)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)


def test_mini_llm_is_weight_times_gradient_times_feature() -> None:
    w1, w2 = weights(hidden())
    x, t = everything()
    _, g2 = by_hand(w1, w2, x, t)
    feature = np.sqrt((np.tanh(x @ w1.T) ** 2).mean(0))
    want = (abs(w2 * g2) * feature).sum(0)
    np.testing.assert_allclose(scores("mini-llm"), want, rtol=1e-6)


def classifier() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))


def test_relevance_shares_out_positive_contributions() -> None:
    """LRP-alpha1-beta0 by hand, from the output of the right class down."""
    model = classifier().double()
    x, _ = everything()
    labels = np.array([0, 1, 1, 0, 1])
    data = [(torch.from_numpy(x[i]), torch.from_numpy(labels[i])) for i in (slice(3), slice(3, 5))]
    layers = [(model[i].weight.detach().numpy(), model[i].bias.detach().numpy()) for i in (0, 2, 4)]
    features = [x]
    for w, b in layers[:2]:
        features.append(np.maximum(features[-1] @ w.T + b, 0))
    out = features[-1] @ layers[2][0].T + layers[2][1]
    relevance = np.where(np.arange(2) == labels[:, None], out, 0)
    means = []
    for (w, _), a in zip(layers[:0:-1], features[:0:-1], strict=True):
        shares = np.maximum(a[:, None] * w, 0)  # (samples, outputs, inputs)
        whole = shares.sum(2, keepdims=True)
        shares = np.divide(shares, whole, out=np.zeros_like(shares), where=whole > 0)
        relevance = (relevance[:, :, None] * shares).sum(1)
        means.append(relevance.mean(0))
    got = scores("relevance", model, data, "cross-entropy")
    np.testing.assert_allclose(got, np.concatenate(means[::-1]), rtol=1e-6, atol=1e-12)


# --- all of them -----------------------------------------------------------------------------


def test_all_have_a_definition_here() -> None:
    assert set(FROM_GRADIENTS) == {
        "snip", "grasp", "crop", "crop-it", "synflow", "taylor", "fisher", "obd", "hap", "oba",
        "relevance", "head-importance", "mini-llm",
    }  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(50, 12), nn.LSTM(12, 16, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.lstm(self.embedding(x))[0][:, -1])


class Tokens(nn.Module):
    """A transformer whose only output is a class."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Tied()

    def forward(self, x: Any) -> Any:
        return self.inner(x).mean(1)


def images() -> list[tuple[Any, Any]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 8, 8, generator=generator)
    return [(x, torch.arange(6)), (x[:2] + 1, torch.arange(2))]


def tokens() -> list[tuple[Any, Any]]:
    x = torch.randint(0, 50, (6, 7), generator=torch.Generator().manual_seed(0))
    return [(x[:4], torch.arange(4)), (x[4:], torch.arange(2))]


@pytest.mark.parametrize("name", FROM_GRADIENTS)
@pytest.mark.parametrize("kind", [Residual, Tokens, Recurrent])
def test_all_prune_real_modules(kind: Any, name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(estimate, "PROBES", 2)
    monkeypatch.setattr(CRITERIA["synflow"](0).__class__, "rounds", 3)
    data = images() if kind is Residual else tokens()
    given = {} if name == "synflow" else {"data": data, "loss": "cross-entropy"}
    pruned = spa.prune(settled(kind()), data[0][0], params=0.7, criterion=name, **given)
    report = spa.report_of(pruned)
    assert report["ratio"]["params"] <= 0.7 and report["options"]["criterion"] == name
    assert pruned(data[1][0]).isfinite().all()
    assert spa.plan_of(pruned).kept


@pytest.mark.parametrize("name", FROM_GRADIENTS)
def test_all_combinations_give_numbers(name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(estimate, "PROBES", 2)
    data = [(torch.from_numpy(everything()[0]), torch.tensor([0, 1, 1, 0, 1]))]
    found = network(hidden(), data, "cross-entropy")
    criterion: Any = make_criterion(name)
    criterion.differentiate(found, lambda *_: None)
    for aggregate, normalize in itertools.product(AGGREGATES, NORMALIZERS):
        how = {"aggregate": aggregate, "normalize": normalize}
        got = score(found._network.coupling, criterion, **how)
        assert got.shape == (4,) and np.isfinite(got).all() and np.ptp(got) > 0


def test_the_channel_that_does_nothing_goes_first() -> None:
    """Where a channel's outputs meet no weights, nothing that counts effects wants to keep it."""
    for name in ("snip", "taylor", "fisher", "oba", "head-importance", "mini-llm"):
        model = hidden()
        with torch.no_grad():
            model[2].weight[:, 1] = 0
        found = scores(name, model)
        assert found.argmin() == 1 and found[1] == pytest.approx(0, abs=1e-12), name
