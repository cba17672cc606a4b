"""Criteria that look at features, each against its definition, computed channel by channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from spa_graph.passes.importance.hrank import PER_BATCH, SAMPLES, HRank
from tests.models import network, outputs, stored
from tests.test_importance_data import CONV, TEXT, calibrated, scores

Array = np.ndarray[Any, Any]

TWO_READERS = """
net (float[N,3,6,6] x) => (float[N,5,6,6] y, float[N,2,4,4] z)
<float[8,3,3,3] w1, float[8] b1, float[5,8,1,1] w2, float[2,8,3,3] w3>
{ h = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(h) s = Sigmoid(r) y = Conv(r, w2) z = Conv(s, w3) }
"""
GROUPED = """
net (float[N,3,6,6] x) => (float[N,6,4,4] y) <float[8,3,3,3] w1, float[6,4,3,3] w2>
{ h = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(h) y = Conv<group=2>(r, w2) }
"""
SEQUENCE = """
net (float[N,7,4] x) => (float[N,7,3] y) <float[4,8] w1, float[8,3] w2>
{ h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }
"""
SIGNED = """
net (float[N,7,4] x) => (float[N,7,3] y) <float[4,8] w1, float[8,3] w2>
{ h = MatMul(x, w1) r = Tanh(h) y = MatMul(r, w2) }
"""
FLATTENED = """
net (float[N,3,6,6] x) => (float[N,5] y) <float[8,3,5,5] w1, float[32,5] w2>
{ h = Conv(x, w1) r = Relu(h) f = Flatten(r) y = MatMul(f, w2) }
"""
EVERY = [TEXT, CONV, TWO_READERS, GROUPED, SEQUENCE, FLATTENED]


def computed(model: Any, found: Any, value: str) -> Array:
    """A value of the network on all fitted samples."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    del whole.graph.output[:]
    whole.graph.output.append(onnx.ValueInfoProto(name=value))
    x = np.concatenate([feeds["x"] for feeds in found.fitting])
    return np.asarray(outputs(whole, {"x": x})[0], np.float64)


def definition(of_channel: Any, text: str, model: Any, found: Any) -> Array:
    """The sum over everything that reads a channel; 4 pairs where two groups are read alike."""
    values = ["r", "s"] if text is TWO_READERS else ["r"]
    total = np.zeros(8)
    for value in values:
        features = computed(model, found, value)
        if text in (SEQUENCE, SIGNED):
            features = features.transpose(0, 2, 1)
        total += [of_channel(features[:, channel]) for channel in range(8)]
    return total.reshape(2, 4).sum(0) if text is GROUPED else total


def options(text: str) -> dict[str, str]:
    return {"groups": "within"} if text is GROUPED else {}


def activation(own: Array) -> float:
    per_sample = np.abs(own).reshape(len(own), -1).mean(1)
    return float(np.linalg.norm(per_sample)) / len(own) ** 0.5


def apoz(own: Array) -> float:
    return float(np.count_nonzero(own)) / own.size


SAID = [(each, text) for each in (activation, apoz) for text in EVERY[:-1]]


@pytest.mark.parametrize(("criterion", "text"), [*SAID, (activation, SIGNED)])
def test_is_what_its_paper_says(tmp_path: Any, criterion: Any, text: str) -> None:
    name = criterion.__name__
    analysis, found, model = calibrated(tmp_path, text, criterion=name, **options(text))
    want = definition(criterion, text, model, found)
    assert len(set(want.round(6).tolist())) > 1
    np.testing.assert_allclose(scores(analysis, found), want, rtol=1e-4)


def test_activation_of_a_flattened_map_adds_up_over_its_positions(tmp_path: Any) -> None:
    analysis, found, model = calibrated(tmp_path, FLATTENED, criterion="activation")
    flat = computed(model, found, "f")
    want = np.sqrt(np.square(flat).mean(0)).reshape(8, 4).sum(1)
    np.testing.assert_allclose(scores(analysis, found), want, rtol=1e-4)


# --- hrank ---------------------------------------------------------------------------------------


def rank(matrix: Array) -> int:
    """By Gaussian elimination, for small matrices of features in single precision."""
    left, found = matrix.astype(np.float64), 0
    while (largest := np.abs(left).max(initial=0)) > 5e-6:
        row, column = np.argwhere(np.abs(left) == largest)[0]
        left = left - np.outer(left[:, column], left[row] / left[row, column])
        left = np.delete(np.delete(left, row, 0), column, 1)
        found += 1
    return found


@pytest.fixture
def all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spa_graph.passes.importance.hrank.SAMPLES", 1000)
    monkeypatch.setattr("spa_graph.passes.importance.hrank.PER_BATCH", 1000)


@pytest.mark.usefixtures("all_samples")
@pytest.mark.parametrize("text", [CONV, TWO_READERS, GROUPED])
def test_hrank_is_the_mean_rank_of_maps(tmp_path: Any, text: str) -> None:
    analysis, found, model = calibrated(tmp_path, text, criterion="hrank", **options(text))
    want = definition(lambda own: np.mean([rank(each) for each in own]), text, model, found)
    assert want.min() < want.max()
    np.testing.assert_allclose(scores(analysis, found), want, rtol=1e-6)


@pytest.mark.usefixtures("all_samples")
def test_hrank_of_sequences_is_that_of_samples_by_positions(tmp_path: Any) -> None:
    analysis, found, model = calibrated(tmp_path, SEQUENCE, criterion="hrank")
    features = computed(model, found, "r")
    sizes = np.cumsum([len(feeds["x"]) for feeds in found.fitting])[:-1]
    batches = np.split(features, sizes)
    want = np.mean([[rank(each[..., c]) for c in range(8)] for each in batches], axis=0)
    np.testing.assert_allclose(scores(analysis, found), want, rtol=1e-6)


@pytest.mark.usefixtures("all_samples")
def test_hrank_without_positions_is_the_share_that_is_not_zero(tmp_path: Any) -> None:
    analysis, found, model = calibrated(tmp_path, TEXT, criterion="hrank")
    want = (computed(model, found, "r") != 0).mean(0)
    np.testing.assert_allclose(scores(analysis, found), want, rtol=1e-6)


def test_hrank_looks_at_few_samples_of_a_batch_and_few_rows_of_large_maps() -> None:
    maps = np.random.default_rng(0).standard_normal((20, 2, 200, 100)).astype(np.float32)
    ranks = HRank().of_samples(maps)
    np.testing.assert_array_equal(ranks, np.full((PER_BATCH, 2), 50))  # every 2nd of 100 columns


def test_hrank_stops_at_its_limit(tmp_path: Any) -> None:
    _, found, _ = calibrated(tmp_path, TEXT, criterion="hrank")
    (layer,) = found.layers.values()
    criterion = HRank()
    ones = np.ones((PER_BATCH, 8), np.float32)
    for _ in range(SAMPLES // PER_BATCH):
        criterion.observe(layer, ones)
    criterion.observe(layer, 0 * ones)
    np.testing.assert_array_equal(criterion.mean(layer), np.ones((1, 8)))


# --- kprune --------------------------------------------------------------------------------------

LAST = {
    TEXT: [("r", "float[N,8] r", "float[N,3]", "float[8,3] w2", "MatMul(r, w2)")],
    CONV: [("r", "float[N,8,6,6] r", "float[N,5,4,4]", "float[5,8,3,3] w2", "Conv(r, w2)")],
    TWO_READERS: [
        ("r", "float[N,8,6,6] r", "float[N,5,6,6]", "float[5,8,1,1] w2", "Conv(r, w2)"),
        ("s", "float[N,8,6,6] s", "float[N,2,4,4]", "float[2,8,3,3] w3", "Conv(s, w3)"),
    ],
    GROUPED: [
        ("r", "float[N,8,6,6] r", "float[N,6,4,4]", "float[6,4,3,3] w2", "Conv<group=2>(r, w2)")
    ],
    SEQUENCE: [("r", "float[N,7,8] r", "float[N,7,3]", "float[8,3] w2", "MatMul(r, w2)")],
    FLATTENED: [("r", "float[N,8,2,2] r", "float[N,5]", "float[32,5] w2", "MatMul(f, w2)")],
}
"""The layers that read the hidden channels, as networks of their own."""


@pytest.mark.parametrize("text", EVERY)
def test_kprune_is_what_a_channel_adds_to_the_results(tmp_path: Any, text: str) -> None:
    analysis, found, model = calibrated(tmp_path, text, criterion="kprune", **options(text))
    channels = np.arange(8).reshape(2, 4).T if text is GROUPED else np.arange(8)[:, None]
    want = np.zeros(len(channels))
    for value, given, result, weight, does in LAST[text]:
        features = computed(model, found, value).astype(np.float32)
        flatten = "f = Flatten(r) " if text is FLATTENED else ""
        name = weight.split()[-1]
        source = f"last ({given}) => ({result} y) <{weight}> {{ {flatten}y = {does} }}"
        last = network(source, values={name: stored(model)[name]})
        for number, own in enumerate(channels):
            for channel in own:  # of two groups: each adds to results of its own
                alone = np.zeros_like(features)
                where = (..., channel) if text is SEQUENCE else (slice(None), channel)
                alone[where] = features[where]
                y = outputs(last, {value: alone})[0].astype(np.float64)
                results = y.shape[-1 if text is SEQUENCE else 1]
                want[number] += np.square(y).sum() / (y.size / results)
    np.testing.assert_allclose(scores(analysis, found), want, rtol=1e-4)


@pytest.mark.parametrize(("text", "value"), [(TEXT, "r"), (FLATTENED, "f")])
def test_kprune_of_a_layer_too_wide_for_its_gram_matrix_adds_up_its_rows(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, text: str, value: str
) -> None:
    monkeypatch.setattr("spa_graph.passes.statistics.moments.WIDE", 4)
    analysis, found, model = calibrated(tmp_path, text, criterion="kprune")
    assert all(layer.moments.wide for layer in found.layers.values())
    power = np.square(computed(model, found, value)).mean(0)
    rows = power * np.square(stored(model)["w2"].astype(np.float64)).sum(1)
    want = rows.reshape(8, -1).sum(1)
    np.testing.assert_allclose(scores(analysis, found), want, rtol=1e-4)


@pytest.mark.parametrize("criterion", ["activation", "apoz", "hrank", "kprune"])
@pytest.mark.parametrize("text", [CONV, SEQUENCE, FLATTENED])
def test_constant_features_are_no_trouble(tmp_path: Any, criterion: str, text: str) -> None:
    model = network(text)
    still = np.zeros_like(stored(model)["w1"])
    analysis, found, _ = calibrated(tmp_path, text, values={"w1": still}, criterion=criterion)
    assert np.isfinite(scores(analysis, found)).all()


@pytest.mark.parametrize("criterion", ["activation", "apoz", "hrank", "kprune"])
@pytest.mark.parametrize("text", EVERY)
def test_the_same_seed_gives_the_same(tmp_path: Any, criterion: str, text: str) -> None:
    numbers = [
        scores(*calibrated(tmp_path, text, criterion=criterion, seed=3, **options(text))[:2])
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*numbers)
