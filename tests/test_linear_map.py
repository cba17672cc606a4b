"""Linear operators as matrix products: `rows @ matrix + bias` is what ONNX Runtime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from spa_graph import analyze
from spa_graph.passes.statistics.layers import Layer, linear_layers
from tests.models import network, outputs, stored

Array = NDArray[Any]


def one_layer(model: onnx.ModelProto) -> Layer:
    """The only linear layer of a network."""
    (layer,) = linear_layers(analyze(model).coupling)
    return layer


def assert_computes(model: onnx.ModelProto, x: Array) -> None:
    """At every position, the layer is `rows @ matrix` and a bias; `weight` inverts `matrix`."""
    layer = one_layer(model)
    (y,) = outputs(model, {"x": x})
    weight, bias = layer.load(), stored(model).get("b", np.float32(0))
    matrix = layer.map.matrix(weight)
    np.testing.assert_array_equal(layer.map.weight(matrix), weight)
    counts = layer.map.positions(x)
    every = np.arange(np.prod(counts))
    rows = layer.map.rows(x, every)
    assert rows.shape == (layer.map.groups, len(every), layer.map.inputs)
    assert matrix.shape == (layer.map.groups, layer.map.inputs, layer.map.outputs)
    results = np.moveaxis(y - _along(bias, y.ndim, layer.linear.result), layer.linear.result, -1)
    flat = results.reshape(-1, results.shape[-1])
    np.testing.assert_allclose(rows @ matrix, layer.map.grouped(flat), rtol=1e-4, atol=1e-4)
    some = np.random.default_rng(0).permutation(every)[:5]
    np.testing.assert_array_equal(layer.map.rows(x, some), rows[:, some])
    _assert_places(layer, x)


def _along(bias: Any, rank: int, axis: int) -> Any:
    """A bias of one number per channel, as it is added; others as they are."""
    if np.ndim(bias) != 1:
        return bias
    return np.reshape(bias, [-1 if i == rank + axis else 1 for i in range(rank)])


def _assert_places(layer: Layer, x: Array) -> None:
    """`at` gives all channels at one position of the features, group by group."""
    channels_last = np.moveaxis(x, layer.linear.features, -1)
    flat = channels_last.reshape(-1, channels_last.shape[-1])
    assert layer.map.places(x) == len(flat)
    at = layer.map.at(x, np.arange(len(flat)))
    np.testing.assert_array_equal(at.transpose(1, 0, 2).reshape(flat.shape), flat)


def standard_normal(*shape: int) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def convolution(
    kind: str, weight: tuple[int, ...], x: tuple[int, ...], *, bias: int = 0, **attributes: Any
) -> tuple[onnx.ModelProto, Array]:
    """A network of one Conv or ConvTranspose whose sizes are given."""
    inputs = "x, w, b" if bias else "x, w"
    declared = f"float{list(weight)} w" + (f", float[{bias}] b" if bias else "")
    names = ",".join(["N", *map(str, x[1:])])
    free = ",".join("?" * len(x))
    model = network(
        f"net (float[{names}] x) => (float[{free}] y) <{declared}> {{ y = {kind}({inputs}) }}"
    )
    for name, value in attributes.items():
        model.graph.node[0].attribute.append(onnx.helper.make_attribute(name, value))
    return model, standard_normal(*x)


# --- convolutions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "x", "attributes"),
    [
        ((4, 3, 3), (2, 3, 9), {}),
        ((4, 3, 3), (2, 3, 9), {"strides": [2], "dilations": [2], "pads": [1, 3]}),
        ((4, 3, 3, 2), (2, 3, 7, 6), {"strides": [2, 1], "pads": [0, 1, 2, 0]}),
        ((4, 3, 1, 1), (2, 3, 5, 5), {"strides": [2, 2]}),
        ((4, 3, 3, 3), (2, 3, 8, 7), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
        ((4, 3, 3, 2), (2, 3, 7, 6), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((4, 3, 2, 4), (2, 3, 7, 6), {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
        ((4, 3, 1, 1), (2, 3, 7, 6), {"auto_pad": "SAME_UPPER", "strides": [3, 3]}),
        ((4, 3, 3, 3), (2, 3, 7, 6), {"auto_pad": "VALID", "strides": [2, 2]}),
        ((4, 3, 2, 2, 2), (2, 3, 4, 5, 4), {"strides": [1, 2, 1], "pads": [0, 1, 0, 1, 0, 1]}),
        ((6, 2, 3, 3), (2, 4, 5, 5), {"group": 2, "pads": [1, 1, 1, 1]}),
        ((8, 1, 3, 3), (2, 4, 5, 5), {"group": 4, "strides": [2, 2]}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "x".join(map(str, value)),
)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_conv_is_its_windows_times_its_matrix(
    weight: tuple[int, ...], x: tuple[int, ...], attributes: dict[str, Any], bias: bool
) -> None:
    assert_computes(*convolution("Conv", weight, x, bias=weight[0] * bias, **attributes))


@pytest.mark.parametrize(
    ("weight", "x", "attributes"),
    [
        ((3, 4, 3), (2, 3, 5), {}),
        ((3, 4, 3), (2, 3, 5), {"strides": [3], "pads": [1, 0], "dilations": [2]}),
        ((3, 4, 3, 2), (2, 3, 4, 5), {"strides": [2, 1], "pads": [1, 0, 2, 1]}),
        ((3, 4, 3, 3), (2, 3, 4, 5), {"strides": [2, 2], "pads": [3, 0, 0, 3]}),
        ((3, 4, 3, 3), (2, 3, 4, 5), {"strides": [2, 3], "output_padding": [1, 2]}),
        ((3, 4, 1, 1), (2, 3, 4, 5), {"strides": [2, 2], "output_padding": [1, 1]}),
        ((3, 4, 2, 3), (2, 3, 4, 5), {"auto_pad": "VALID", "strides": [2, 2]}),
        ((3, 4, 2, 2, 2), (2, 3, 2, 3, 2), {"strides": [2, 1, 2], "pads": [0, 1, 0, 1, 0, 1]}),
        ((4, 3, 3, 3), (2, 4, 4, 5), {"group": 2, "pads": [1, 1, 1, 1]}),
        ((4, 2, 3, 3), (2, 4, 4, 5), {"group": 4, "strides": [2, 2]}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "x".join(map(str, value)),
)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_transposed_conv_is_a_conv_over_spread_features(
    weight: tuple[int, ...], x: tuple[int, ...], attributes: dict[str, Any], bias: bool
) -> None:
    width = weight[1] * attributes.get("group", 1)
    assert_computes(*convolution("ConvTranspose", weight, x, bias=width * bias, **attributes))


@pytest.mark.parametrize(
    "attributes",
    [
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"output_shape": [9, 9], "strides": [2, 2]},
    ],
    ids=lambda value: next(iter(value)),
)
def test_transposed_conv_whose_padding_follows_from_its_size_is_not_claimed(
    attributes: dict[str, Any],
) -> None:
    model, _ = convolution("ConvTranspose", (3, 4, 3, 3), (2, 3, 4, 4), **attributes)
    assert linear_layers(analyze(model).coupling) == []


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_convolution_that_runtime_accepts(data: st.DataObject) -> None:
    draw = data.draw
    rank, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    small = st.lists(st.integers(1, 3), min_size=rank, max_size=rank)
    group, inputs, outs = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel, strides, dilations = draw(small), draw(small), draw(small)
    edges = st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank)
    attributes: dict[str, Any] = {"group": group, "strides": strides, "dilations": dilations}
    attributes["pads"] = draw(edges)
    if not transposed and draw(st.booleans()):
        del attributes["pads"]
        attributes["auto_pad"] = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
        if attributes["auto_pad"] != "VALID":
            del attributes["dilations"]  # ONNX Runtime refuses both together
    if transposed:
        attributes["output_padding"] = [draw(st.integers(0, stride - 1)) for stride in strides]
    sizes = [draw(st.integers(7, 9)) for _ in range(rank)]
    weight = (group * inputs, outs) if transposed else (group * outs, inputs)
    kind = "ConvTranspose" if transposed else "Conv"
    shape = (2, group * inputs, *sizes)
    assert_computes(*convolution(kind, (*weight, *kernel), shape, bias=group * outs, **attributes))


# --- matrices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn_x", [0, 1])
@pytest.mark.parametrize("turn_w", [0, 1])
@pytest.mark.parametrize("bias", ["", "float[5] b", "float[1,5] b", "float[2,5] b", "float[1] b"])
def test_gemm_in_all_orientations(turn_x: int, turn_w: int, bias: str) -> None:
    x = (4, 2) if turn_x else (2, 4)
    weight = "5,4" if turn_w else "4,5"
    declared = f"float[{weight}] w" + (f", {bias}" if bias else "")
    inputs = "x, w, b" if bias else "x, w"
    model = network(
        f"net (float[{x[0]},{x[1]}] x) => (float[2,5] y) <{declared}>"
        f"{{ y = Gemm<transA = {turn_x}, transB = {turn_w}>({inputs}) }}"
    )
    assert_computes(model, standard_normal(*x))


@pytest.mark.parametrize("factor", ["alpha = 2.0", "beta = 0.5"])
def test_gemm_that_scales_is_not_claimed(factor: str) -> None:
    model = network(
        "net (float[2,4] x) => (float[2,5] y) <float[4,5] w, float[5] b>"
        f"{{ y = Gemm<{factor}>(x, w, b) }}"
    )
    assert linear_layers(analyze(model).coupling) == []


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (2, 2, 3, 4)], ids=len)
def test_features_times_matrix_of_any_rank(shape: tuple[int, ...]) -> None:
    free = ",".join("?" * len(shape))
    sizes = ",".join(map(str, shape))
    model = network(
        f"net (float[{sizes}] x) => (float[{free}] y) <float[4,5] w> {{ y = MatMul(x, w) }}"
    )
    assert_computes(model, standard_normal(*shape))


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 3), (2, 2, 4, 3)], ids=len)
def test_matrix_times_features_of_any_rank(shape: tuple[int, ...]) -> None:
    free = ",".join("?" * len(shape))
    sizes = ",".join(map(str, shape))
    model = network(
        f"net (float[{sizes}] x) => (float[{free}] y) <float[5,4] w> {{ y = MatMul(w, x) }}"
    )
    assert_computes(model, standard_normal(*shape))


@pytest.mark.parametrize(
    ("equation", "x", "weight"),
    [
        ("abk,kn->abn", (2, 3, 4), (4, 5)),
        ("abk,nk->abn", (2, 3, 4), (5, 4)),
        ("nk,akb->anb", (2, 4, 3), (5, 4)),
        ("akb,kn->nab", (2, 4, 3), (4, 5)),
        ("...k,kn->...n", (2, 3, 4), (4, 5)),
        ("k,kn", (4,), (4, 5)),
    ],
)
def test_einsum_with_a_matrix(equation: str, x: tuple[int, ...], weight: tuple[int, int]) -> None:
    operands = "w, x" if equation.startswith("nk") else "x, w"
    free = ",".join("?" * len(x))
    model = network(
        f"net (float{list(x)} x) => (float[{free}] y) <float{list(weight)} w> "
        f'{{ y = Einsum<equation="{equation}">({operands}) }}'
    )
    assert_computes(model, standard_normal(*x))


@pytest.mark.parametrize(
    ("equation", "x", "weight", "y"),
    [
        ("abk,kn->ban", [2, 3, 4], [4, 5], [3, 2, 5]),
        ("abk,kn->an", [2, 3, 4], [4, 5], [2, 5]),
        ("abk,bk->abk", [2, 3, 4], [3, 4], [2, 3, 4]),
        ("ak,nk->ank", [2, 4], [5, 4], [2, 5, 4]),
        ("ak,kn->a", [2, 4], [4, 5], [2]),
        ("ak,kn->an", [2, 1], [4, 5], [2, 5]),
        ("ab,kn->abkn", [2, 3], [4, 5], [2, 3, 4, 5]),
    ],
)
def test_an_einsum_that_is_no_matrix_product(
    equation: str, x: list[int], weight: list[int], y: list[int]
) -> None:
    model = network(
        f"net (float{x} x) => (float{y} y) <float{weight} w> "
        f'{{ y = Einsum<equation="{equation}">(x, w) }}'
    )
    assert linear_layers(analyze(model).coupling) == []


CELLS = [
    (directions, kind, bias)
    for directions, kinds in ((1, ("forward", "reverse")), (2, ("bidirectional",)))
    for kind in kinds
    for bias in (False, True)
]


@pytest.mark.parametrize(("directions", "kind", "bias"), CELLS)
def test_gates_of_a_cell(directions: int, kind: str, bias: bool) -> None:
    """tanh of what both maps add up, with both biases, is what an RNN gives."""
    stored_bias = f", float[{directions},10] b" if bias else ""
    model = network(
        f"net (float[T,N,3] x) => (float[T,{directions},N,5] y) "
        f"<float[{directions},5,3] w, float[{directions},5,5] r{stored_bias}> "
        f'{{ y = RNN<hidden_size=5, direction="{kind}">(x, w, r{", b" * bias}) }}'
    )
    x = standard_normal(4, 2, 3)
    (y,) = outputs(model, {"x": x})
    reads, recurs = linear_layers(analyze(model).coupling)
    assert (reads.source, recurs.source) == ("x", "y")
    total = np.zeros((directions, 4, 2, 5))
    for layer, features in ((reads, x), (recurs, _before(y, kind))):
        places = layer.map.places(features)
        assert layer.map.positions(features) == (places,) == (8,)
        rows = layer.map.rows(features, np.arange(places))
        np.testing.assert_array_equal(rows, layer.map.at(features, np.arange(places)))
        np.testing.assert_array_equal(layer.map.weight(layer.matrix), layer.load())
        total += (rows @ layer.matrix).reshape(total.shape)
        if bias:
            total += (
                (stored(model)["b"] * layer.map.bias(np.ones((directions, 5))))
                .reshape(directions, 2, 1, 1, 5)
                .sum(1)
            )
    want = np.moveaxis(y, 1, 0)
    np.testing.assert_allclose(np.tanh(total), want, rtol=1e-4, atol=1e-5)


def _before(y: Array, kind: str) -> Array:
    """A cell's states one step earlier in each direction's time; (T, directions, N, hidden)."""
    before = np.zeros_like(y)
    for direction in range(y.shape[1]):
        if kind == "reverse" or direction == 1:
            before[:-1, direction] = y[1:, direction]
        else:
            before[1:, direction] = y[:-1, direction]
    return before


@pytest.mark.parametrize(
    "text",
    [
        "(float[4] x) => (float[5] y) <float[5,4] w> { y = MatMul(w, x) }",
        "(float[2,3,4] x) => (float[2,3,5] y) <float[2,4,5] w> { y = MatMul(x, w) }",
        "(float[3,4] x) => (float[3] y) <float[4] w> { y = MatMul(x, w) }",
        "(float[3,4] x, float[4,5] w) => (float[3,5] y) { y = MatMul(x, w) }",
    ],
    ids=["matrix times vector", "a matrix per sample", "weight vector", "no stored weight"],
)
def test_products_of_other_forms_are_not_claimed(text: str) -> None:
    assert linear_layers(analyze(network("net " + text)).coupling) == []


def test_elements_says_which_channel_each_row_belongs_to() -> None:
    model, _ = convolution("Conv", (4, 2, 1, 3), (2, 4, 5, 5), group=2)
    elements = one_layer(model).map.elements
    np.testing.assert_array_equal(elements, [[0, 0, 0, 1, 1, 1], [2, 2, 2, 3, 3, 3]])


def test_half_precision_is_computed_in_single() -> None:
    model = network(
        "net (float16[3,4] x) => (float16[3,5] y) <float16[4,5] w> { y = MatMul(x, w) }"
    )
    layer = one_layer(model)
    x = standard_normal(3, 4).astype(np.float16)
    assert layer.matrix.dtype == layer.map.rows(x, np.arange(3)).dtype == np.float32
    (y,) = outputs(model, {"x": x})
    product = layer.map.rows(x, np.arange(3)) @ layer.matrix
    np.testing.assert_allclose(product[0], y, rtol=1e-2, atol=1e-2)
