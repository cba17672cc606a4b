"""Made-up calibration samples that fit the network: its scale, its kind, its own sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from spa_graph import analyze
from spa_graph.frontends.onnx import files
from spa_graph.graph import Graph
from spa_graph.runtime.calibration import Calibration, Prober, calibration, matching, noise
from tests.models import network, outputs

BATCH_NORM = """
normed (float[N,3,16,16] x) => (float[N,2] y)
<float[8,3,3,3] w1, float[8] one, float[8] zero, float[8] mean, float[8] variance, float[8,2] w2>
{
    a = Conv(x, w1)
    n = BatchNormalization(a, one, zero, mean, variance)
    r = Relu(n)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = MatMul(f, w2)
}
"""
FOLDED = """
folded (float[N,3,16,16] x) => (float[N,2] y)
<float[8,3,3,3] w1, float[8] b1, float[8,2] w3>
{
    a = Conv(x, w1, b1)
    r = Relu(a)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = MatMul(f, w3)
}
"""
CONV = "c (float[N,3,16,16] x) => (float[N,8,14,14] y) <float[8,3,3,3] w> { y = Conv(x, w) }"
BIGRAM = """
bigram (int64[batch,12] ids) => (float[batch,12,7] logits) <float[7,7] table>
{ logits = Gather(table, ids) }
"""
MASKED = """
masked (int64[batch,12] ids) => (float[batch,12,7] logits) <float[7,7] table, int64[1] axis = {1}>
{
    e = Gather(table, ids)
    s = ReduceSum<keepdims = 1>(e, axis)
    logits = Add(e, s)
}
"""
RECURRENT = """
recurrent (float[S,1,4] x, float[1,1,5] h) => (float[1,1,5] y)
<float[1,15,4] w, float[1,15,5] r>
{ all, y = GRU<hidden_size = 5>(x, w, r, , , h) }
"""


def made(model: onnx.ModelProto, folder: Path, **options: Any) -> Calibration:
    path = folder / "model.onnx"
    onnx.save(model, path)
    graph: Graph = analyze(model).graph
    probe = Prober(lambda also: files.openable(path, also), graph.outputs)
    return calibration("data-free", graph, probe=probe, **options)


def photographs(offset: float, gain: float) -> Any:
    """Other images than the search will make, by another seed."""
    images = [noise.dead_leaves((3, 16, 16), np.random.default_rng([9, i])) for i in range(32)]
    return np.float32(offset + gain * np.stack(images))


def batch_normed(offset: float, gain: float, images: Any = None) -> onnx.ModelProto:
    """A network whose BatchNorm has seen photographs at this scale, or other images."""
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    images = photographs(offset, gain) if images is None else images
    (seen,) = outputs(network(CONV, values={"w": weight}), {"x": images})
    statistics = {"mean": seen.mean((0, 2, 3)), "variance": seen.var((0, 2, 3))}
    plain = {"w1": weight, "one": np.ones(8, np.float32), "zero": np.zeros(8, np.float32)}
    return network(BATCH_NORM, values=plain | statistics)


@pytest.mark.parametrize(
    ("offset", "gain", "name"),
    [(0, 255, "0..255"), (-1, 2, "[-1, 1]"), (0, 1, "[0, 1]"), (-1.92, 4, "standardised")],
)
def test_batch_norms_tell_the_scale(offset: float, gain: float, name: str, tmp_path: Path) -> None:
    got = made(batch_normed(offset, gain), tmp_path, samples=16)
    assert f"images of 16 x 16, {name}" in got.source
    images = np.concatenate([feeds["x"] for feeds in got])
    truth = photographs(offset, gain)
    assert images.std() == pytest.approx(truth.std(), rel=0.4)
    assert abs(images.mean() - truth.mean()) < 0.6 * truth.std()


@pytest.mark.parametrize(
    ("gain", "names"),
    [(255, ("0..255", "-128..127")), (4, ("standardised", "ImageNet-normalised"))],
)
def test_folded_batch_norms_tell_the_contrast(
    gain: float, names: tuple[str, ...], tmp_path: Path
) -> None:
    """A convolution whose outputs have deviation 1 on images of this contrast."""
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    (seen,) = outputs(network(CONV, values={"w": weight}), {"x": photographs(0, gain)})
    weight /= seen.std((0, 2, 3))[:, None, None, None]
    model = network(FOLDED, values={"w1": weight, "b1": np.zeros(8, np.float32)})
    assert made(model, tmp_path, samples=8).source.endswith(
        tuple(f"{n} (8 samples)" for n in names)
    )


def test_distance_is_the_divergence_of_normal_distributions() -> None:
    layer = matching.Layer("a", 1, np.array([1.0]), np.array([2.0]))
    assert layer.distance(np.array([1.0]), np.array([2.0])) == 0
    divergence = np.log(2 / 3) + (9 + 16) / 8 - 0.5
    got = layer.distance(np.array([5.0]), np.array([3.0]))
    assert got == pytest.approx(np.log1p(divergence))


def test_sequences_are_what_the_decoder_writes(tmp_path: Path) -> None:
    """A network that is sure of the next token: the one after, modulo 7."""
    table = 50 * np.roll(np.eye(7, dtype=np.float32), 1, axis=1)
    got = made(network(BIGRAM, values={"table": table}), tmp_path, samples=40)
    assert got.source == "data-free: sequences sampled from the network (40 samples)"
    ids = np.concatenate([feeds["ids"] for feeds in got])
    np.testing.assert_array_equal(ids[:, 1:], (ids[:, :-1] + 1) % 7)
    assert len(np.unique(ids[:, 0])) > 3


def test_sampling_has_temperature_one(tmp_path: Path) -> None:
    """Transitions come as often as the network says."""
    generator = np.random.default_rng(0)
    table = generator.normal(0, 1.5, (7, 7)).astype(np.float32)
    got = made(network(BIGRAM, values={"table": table}), tmp_path, samples=800, batch=200)
    ids = np.concatenate([feeds["ids"] for feeds in got])
    counts = np.zeros((7, 7))
    np.add.at(counts, (ids[:, :-1], ids[:, 1:]), 1)
    wanted = np.exp(table) / np.exp(table).sum(1, keepdims=True)
    np.testing.assert_allclose(counts / counts.sum(1, keepdims=True), wanted, atol=0.06)


def test_networks_that_see_the_future_are_not_sampled(tmp_path: Path) -> None:
    assert "structured tokens" in made(network(MASKED), tmp_path, samples=4).source


def test_recurrent_states_start_at_zero() -> None:
    (feeds,) = calibration("data-free", analyze(network(RECURRENT)).graph, samples=4)
    assert not feeds["h"].any()
    assert feeds["x"].any()


@pytest.mark.parametrize("kind", noise.IMAGES)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 5, 64), (4, 48, 20), (3, 1, 1)])
def test_images_of_any_shape_lie_between_zero_and_one(
    kind: str, shape: tuple[int, int, int]
) -> None:
    for seed in range(5):
        image = noise.IMAGES[kind](shape, np.random.default_rng(seed))
        assert image.shape == shape
        assert image.dtype == np.float32
        assert np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1


@pytest.mark.parametrize("shape", [(1, 1000), (2, 64), (1, 3)])
def test_sounds_are_standardised(shape: tuple[int, int]) -> None:
    made = noise.sound(shape, np.random.default_rng(0))
    assert made.shape == shape
    np.testing.assert_allclose(made.std(1), 1, rtol=1e-3)
