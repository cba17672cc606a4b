"""Padding: found where a network ignores what a mask hides, and left out of all fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from spa_graph import analyze, prune
from spa_graph.passes import calibrated
from spa_graph.passes.statistics.layers import linear_layers
from spa_graph.passes.statistics.padding import Padding, find_padding
from tests.models import network, outputs

Array = NDArray[Any]
BATCH, LENGTH = 32, 12


def encoder(weighing: str = "m = Identity(f)") -> onnx.ModelProto:
    """Token by token, then a sum over tokens, weighed by the mask as `weighing` says."""
    text = f"""net (int64[N,T] ids, int64[N,T] mask) => (float[N,T,6] o, float[N,6] p)
    <float[20,8] table, float[8,32] w1, float[32] b1, float[32,6] w2, int64[1] last, float one>
    {{ e = Gather(table, ids) a = MatMul(e, w1) b = Add(a, b1) h = Relu(b) o = MatMul(h, w2)
       f = Cast<to=1>(mask) {weighing} u = Unsqueeze(m, last) q = Mul(o, u)
       p = ReduceSum<keepdims=0>(q, axis) }}"""
    text = text.replace("float one>", "float one, int64[1] axis>")
    values = {
        "last": np.array([2]),
        "axis": np.array([1]),
        "one": np.array(1.0, np.float32),
        "table": np.random.default_rng(1).standard_normal((20, 8)).astype(np.float32),
    }
    values["table"][10:] *= 4  # what padding is embedded as
    return network(text, values=values)


def texts(count: int = BATCH, seed: int = 0, hidden: int = 0) -> dict[str, Array]:
    """Random tokens, most of which are padding: tokens of another kind, marked by `hidden`."""
    generator = np.random.default_rng(seed)
    ids, others = (generator.integers(*span, (count, LENGTH)) for span in ((0, 10), (10, 20)))
    stays = np.arange(LENGTH) < generator.integers(1, LENGTH // 2 + 1, (count, 1))
    mask = np.where(stays, 1 - hidden, hidden)
    return {"ids": np.where(stays, ids, others), "mask": mask}


def padding_of(model: onnx.ModelProto, feeds: dict[str, Array]) -> Padding | None:
    coupling = analyze(model).coupling
    return find_padding(coupling, [feeds], lambda given: outputs(model, dict(given)))


def test_a_mask_that_the_network_heeds() -> None:
    feeds = texts()
    padding = padding_of(encoder(), feeds)
    assert padding is not None and (padding.mask, padding.ignored) == ("mask", 0)
    np.testing.assert_array_equal(padding.stays(feeds), feeds["mask"] == 1)


def test_a_mask_of_ones_where_padding_is() -> None:
    padding = padding_of(encoder("m = Sub(one, f)"), texts(hidden=1))
    assert padding is not None and padding.ignored == 1


def test_zeros_and_ones_that_hide_nothing() -> None:
    assert padding_of(encoder("m = Add(one, f)"), texts()) is None


def test_without_padding_in_the_data_none_is_found() -> None:
    feeds = texts()
    feeds["mask"][:] = 1
    assert padding_of(encoder(), feeds) is None


def test_outputs_are_blank_and_layers_look_elsewhere() -> None:
    model, feeds = encoder(), texts()
    padding = padding_of(model, feeds)
    assert padding is not None
    tokens, pooled = outputs(model, feeds)
    blank, same = padding.blank(feeds, [tokens, pooled])
    np.testing.assert_array_equal(blank, tokens * feeds["mask"][..., None])
    np.testing.assert_array_equal(same, pooled)
    for layer in linear_layers(padding.coupling):
        want = np.flatnonzero(feeds["mask"])
        np.testing.assert_array_equal(padding.places(layer, feeds), want)


def test_the_fit_is_better_where_padding_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, fresh = encoder(), texts(64, seed=9)
    options: dict[str, Any] = {"ratio": 0.5, "calibrate": texts(64)}

    def error() -> float:
        smaller = prune(model, **options).model
        want, got = outputs(model, fresh)[0], outputs(smaller, fresh)[0]
        stays = fresh["mask"] == 1
        return float(np.square(want - got)[stays].mean() / want[stays].var())

    without_padding = error()
    monkeypatch.setattr(calibrated, "find_padding", lambda *_: None)
    assert without_padding < 0.9 * error()
