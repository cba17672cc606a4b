"""Reconstruction: what redundant channels computed is given back, and nothing else changes.

A network is redundant where half of a layer's channels are linear combinations of the others. With
that half gone, the layers that read them can compute again exactly what they did.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from spa_graph import Result, prune
from spa_graph.passes import reconstruct
from spa_graph.passes.options import METHODS
from spa_graph.runtime.calibration import pieces
from tests.models import CHAIN, assert_same_outputs, network, outputs, shapes, stored

Array = NDArray[Any]


def samples(model: onnx.ModelProto, count: int = 64, seed: int = 3) -> dict[str, Array]:
    """Standard normal numbers for all inputs; symbolic axes are `count`."""
    generator = np.random.default_rng(seed)
    weights = set(stored(model))
    feeds = {}
    for value in model.graph.input:
        if value.name not in weights:
            kind = value.type.tensor_type
            shape = [dim.dim_value or count for dim in kind.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            feeds[value.name] = generator.standard_normal(shape).astype(dtype)
    return feeds


def redundant(weight: Array, axis: int = 0, blocks: int = 1, seed: int = 0) -> Array:
    """The second half of each block's channels along an axis, combined of the first half's."""
    moved = np.moveaxis(weight, axis, 0).copy()
    for block in np.split(moved, blocks):
        half = len(block) // 2
        mix = np.random.default_rng(seed).standard_normal((len(block) - half, half))
        block[half:] = (0.4 * np.tensordot(mix, block[:half], 1)).astype(weight.dtype)
    return np.moveaxis(moved, 0, axis)


def with_redundant(
    text: str, *names: str, axis: int = 0, blocks: int = 1, **options: Any
) -> onnx.ModelProto:
    """A network in which some weights are redundant."""
    values = stored(network(text, **options))
    changed = {name: redundant(values[name], axis, blocks) for name in names}
    return network(text, values=changed, **options)


def recon(model: Any, **options: Any) -> Result:
    feeds = samples(model) if isinstance(model, onnx.ModelProto) else None
    chosen = {"ratio": 0.5, "criterion": "obspa", "calibrate": feeds} | options
    return prune(model, **chosen)


def error(model: onnx.ModelProto, smaller: onnx.ModelProto) -> float:
    """The squared error of the outputs on new data, as a share of their variance."""
    feeds = samples(model, seed=99)
    shares = [
        np.square(want - got).mean() / want.var()
        for want, got in zip(outputs(model, feeds), outputs(smaller, feeds), strict=True)
    ]
    return float(max(shares))


def assert_recovered(model: onnx.ModelProto, most: float = 1e-3, **options: Any) -> Result:
    """Half of the channels go, and the outputs come back; without repair they would not."""
    result = recon(model, reconstruct="ls", **options)
    onnx.checker.check_model(result.model, full_check=True)
    assert result.report["ratio"]["channels"] <= 0.51
    assert error(model, result.model) < most
    assert error(model, recon(model, reconstruct="none", **options).model) > 10 * most
    return result


LINEAR_CHAIN = """
net (float[N,3,6,6] x) => (float[N,5,4,4] y)
<float[8,3,3,3] w1, float[8] b1, float[5,8,3,3] w2, float[5] b2>
{ a = Conv<pads=[1,1,1,1]>(x, w1, b1) y = Conv(a, w2, b2) }
"""

NETWORKS = {
    "conv": (LINEAR_CHAIN, ("w1",)),
    "no bias": (
        """net (float[N,3,6,6] x) => (float[N,5,4,4] y) <float[8,3,3,3] w1, float[5,8,3,3] w2>
        { a = Conv<pads=[1,1,1,1]>(x, w1) y = Conv(a, w2) }""",
        ("w1",),
    ),
    "residual": (
        """net (float[N,3,6,6] x) => (float[N,5,6,6] y)
        <float[8,3,1,1] w0, float[8,3,1,1] w1, float[5,8,1,1] w2>
        { s = Conv(x, w0) a = Conv(x, w1) sum = Add(s, a) y = Conv(sum, w2) }""",
        ("w0", "w1"),
    ),
    "concat": (
        """net (float[N,3,6,6] x) => (float[N,5,6,6] y)
        <float[8,3,1,1] w0, float[6,3,1,1] w1, float[5,14,1,1] w2>
        { s = Conv(x, w0) a = Conv(x, w1) c = Concat<axis=1>(s, a) y = Conv(c, w2) }""",
        ("w0", "w1"),
    ),
    "transposed conv": (
        """net (float[N,3,4,4] x) => (float[N,5,?,?] y)
        <float[8,3,1,1] w0, float[8,5,3,3] w1, float[5] b1>
        { s = Conv(x, w0) y = ConvTranspose<strides=[2,2], output_padding=[1,1]>(s, w1, b1) }""",
        ("w0",),
    ),
    "two linear layers": (
        """net (float[N,7,4] x) => (float[N,7,3] y) <float[16,4] w1, float[16,3] w2, float[3] b>
        { t = Constant<value_ints=[0]>() u = Transpose<perm=[1,0]>(w1)
          h = MatMul(x, u) m = MatMul(h, w2) y = Add(m, b) }""",
        ("w1",),
    ),
    "gemm": (
        """net (float[N,4] x) => (float[N,3] y) <float[16,4] w1, float[16] b1, float[16,3] w2>
        { h = Gemm<transB=1>(x, w1, b1) y = Gemm(h, w2) }""",
        ("w1",),
    ),
    "matrix times features": (
        """net (float[N,4,7] x) => (float[N,3,7] y) <float[16,4] w1, float[3,16] w2>
        { h = MatMul(w1, x) y = MatMul(w2, h) }""",
        ("w1",),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_redundant_channels_computed_comes_back(name: str) -> None:
    text, weights = NETWORKS[name]
    assert_recovered(with_redundant(text, *weights))


def test_batch_norm_behind_the_redundant_layer() -> None:
    """Without padding: what a shift adds is a bias, but not where zeros are padded."""
    text = """net (float[N,3,6,6] x) => (float[N,5,2,2] y)
    <float[8,3,3,3] w1, float[8] g, float[8] s, float[8] m, float[8] v, float[5,8,3,3] w2>
    { a = Conv(x, w1) n = BatchNormalization(a, g, s, m, v) y = Conv(n, w2) }"""
    values = stored(network(text))
    values = {"w1": redundant(values["w1"]), "v": np.abs(values["v"])}
    assert_recovered(network(text, values=values))


@pytest.mark.parametrize("data", [{}, {"calibrate": "data-free"}], ids=["data", "data-free"])
def test_depthwise_between_redundant_layer_and_reader(data: dict[str, str]) -> None:
    """The same filter for all channels, so that their combinations stay combinations."""
    text = """net (float[N,3,6,6] x) => (float[N,5,4,4] y)
    <float[8,3,1,1] w1, float[8,1,3,3] d, float[8] bd, float[5,8,1,1] w2>
    { a = Conv(x, w1) c = Conv<group=8>(a, d, bd) y = Conv(c, w2) }"""
    values = stored(network(text))
    values = {"w1": redundant(values["w1"]), "d": np.repeat(values["d"][:1], 8, 0)}
    model = network(text, values=values)
    assert_recovered(model, **data)
    swept = recon(model, reconstruct="obspa", **data)
    assert error(model, swept.model) < 0.1 * error(model, recon(model, reconstruct="none").model)


def test_grouped_conv_loses_channels_within_its_groups() -> None:
    text = """net (float[N,3,5,5] x) => (float[N,4,3,3] y)
    <float[16,3,1,1] w1, float[4,8,3,3] w2, float[4] b>
    { a = Conv(x, w1) y = Conv<group=2>(a, w2, b) }"""
    assert_recovered(with_redundant(text, "w1", blocks=2), groups="within")


@pytest.mark.parametrize("data", [{}, {"calibrate": "data-free"}], ids=["data", "data-free"])
def test_whole_groups_go_and_the_layer_behind_makes_up_for_them(data: dict[str, str]) -> None:
    """Groups 2 and 3 compute what groups 0 and 1 do, of the same inputs."""
    text = """net (float[N,3,5,5] x) => (float[N,4,5,5] y)
    <float[16,3,1,1] w1, float[8,4,1,1] w2, float[4,8,1,1] w3>
    { a = Conv(x, w1) g = Conv<group=4>(a, w2) y = Conv(g, w3) }"""
    values = stored(network(text))
    for name in ("w1", "w2"):
        half = len(values[name]) // 2
        values[name] = np.concatenate([values[name][:half], 0.5 * values[name][:half]])
    assert_recovered(network(text, values=values), **data)


BRANCHES = """net (float[N,3,5,5] x, float[N,3,5,5] z) => (float[N,4,5,5] y)
<float[8,3,1,1] w1, float[8] b1, float[4,8,1,1] w2>
{ a = Conv(x, w1, b1) b = Conv(z, w1, b1) c = Conv(a, w2) d = Conv(b, w2) y = Sub(c, d) }"""


def test_shared_weights_of_two_branches() -> None:
    result = assert_recovered(with_redundant(BRANCHES, "w1"))
    assert set(shapes(result.model)) == {"w1", "b1", "w2"}  # shared as before


def test_a_shared_layer_around_another_one() -> None:
    """Both uses of `w` are looked at together, though `m` lies between them."""
    text = """net (float[N,8] x) => (float[N,8] y) <float[8,8] w, float[8,16] m, float[16,8] n>
    { a = MatMul(x, w) b = MatMul(a, m) r = Relu(b) c = MatMul(r, n) y = MatMul(c, w) }"""
    model = with_redundant(text, "m", axis=1)
    smaller = recon(model, reconstruct="ls").model
    assert error(model, smaller) <= error(model, recon(model, reconstruct="none").model)


def test_other_axes_of_the_features_are_pruned_as_well() -> None:
    """Token mixing: `w2` sums over tokens while the channels beside them become fewer."""
    text = """net (float[N,5,3] x) => (float[N,6,4] y)
    <float[3,8] w1, float[5,6] w2, float[6,6] w3, float[8,4] w4>
    {
        a = MatMul(x, w1)
        t = Transpose<perm=[0,2,1]>(a)
        m = MatMul(t, w2)
        n = MatMul(m, w3)
        u = Transpose<perm=[0,2,1]>(n)
        y = MatMul(u, w4)
    }"""
    values = stored(network(text))
    values = {name: redundant(values[name], 1) for name in ("w1", "w2")}
    result = assert_recovered(network(text, values=values))
    assert shapes(result.model)["w2"] == (5, 3)


def test_half_precision_weights_stay_so() -> None:
    text = LINEAR_CHAIN.replace("float[", "float16[")
    model = with_redundant(text, "w1")
    result = assert_recovered(model, most=1e-2)
    assert {array.dtype for array in stored(result.model).values()} == {np.dtype(np.float16)}


# --- biases --------------------------------------------------------------------------------------


def test_a_bias_that_several_layers_share_is_copied() -> None:
    """`zero` is the bias of three layers; each gets its own, `other` keeps it."""
    text = """net (float[N,4] x) => (float[N,6] y, float[N,6] z)
    <float[4,16] w1, float[16] b1, float[16,6] w2, float[6,4] w3, float[4,6] w4, float[6] zero>
    {
        h = Gemm(x, w1, b1)
        r = Relu(h)
        a = Gemm(r, w2, zero)
        m = MatMul(a, w3)
        d = MatMul(m, w4)
        y = Add(d, zero)
        z = Mul(x6, zero)
    }""".replace("z = Mul(x6, zero)", "w = MatMul(x, w4) z = Mul(w, zero)")
    model = network(text, values={"zero": np.full(6, 0.5, np.float32)})
    result = recon(model, reconstruct="ls")
    np.testing.assert_array_equal(stored(result.model)["zero"], np.full(6, 0.5, np.float32))
    assert error(model, result.model) < error(model, recon(model, reconstruct="none").model)


def test_only_the_layer_s_own_place_of_a_bias_is_changed() -> None:
    """`b` is added by the convolution, and once more behind it."""
    text = """net (float[N,3,5,5] x) => (float[N,4,5,4] y)
    <float[8,3,1,1] w1, float[8] b1, float[4,8,1,2] w2, float[4] b>
    { a = Conv(x, w1, b1) r = Relu(a) c = Conv(r, w2, b) y = Add(c, b) }"""
    model = network(text)
    result = recon(model, reconstruct="bias")
    nodes = {node.op_type: node for node in result.model.graph.node}
    assert nodes["Add"].input[1] == "b"
    np.testing.assert_array_equal(stored(result.model)["b"], stored(model)["b"])
    assert error(model, result.model) < error(model, recon(model, reconstruct="none").model)


@pytest.mark.parametrize("bias", ["float[4,1] b", "float[4,4] b", "float[1] b", "float b"])
def test_a_bias_of_another_form_is_left_alone(bias: str) -> None:
    """A square result, where a column of numbers has as many as a row."""
    text = f"""net (float[4,5] x) => (float[4,4] y) <float[5,16] w1, float[16,4] w2, {bias}>
    {{ h = MatMul(x, w1) r = Relu(h) y = Gemm(r, w2, b) }}"""
    model = network(text)
    feeds = {"x": np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)}
    result = recon(model, reconstruct="ls", calibrate=feeds)
    np.testing.assert_array_equal(stored(result.model)["b"], stored(model)["b"])


def test_what_is_added_to_a_matrix_times_features_goes_along_positions() -> None:
    text = """net (float[N,5,4] x) => (float[N,4,4] y) <float[16,5] w1, float[4,16] w2, float[4] b>
    { h = MatMul(w1, x) r = Relu(h) m = MatMul(w2, r) y = Add(m, b) }"""
    model = network(text)
    result = recon(model, reconstruct="ls")
    np.testing.assert_array_equal(stored(result.model)["b"], stored(model)["b"])
    assert result.report["calibration"]["reconstruction"]["undone"] is False


def test_a_params_budget_gets_no_new_bias() -> None:
    text, weights = NETWORKS["no bias"]
    model = with_redundant(text, *weights)
    result = recon(model, ratio=None, params=0.6, reconstruct="ls")
    assert set(stored(result.model)) == {"w1", "w2"}
    assert result.report["ratio"]["params"] <= 0.6
    grown = recon(model, reconstruct="bias")
    assert len(stored(grown.model)) > 2 or grown.report["calibration"]["reconstruction"]["undone"]


# --- weights that others need too ----------------------------------------------------------------

TIED = """
net (int64[N,6] ids) => (float[N,6,20] y) <float[20,8] table, float[8,16] w1, float[16,8] w2>
{ e = Gather(table, ids) h = MatMul(e, w1) r = Relu(h) d = MatMul(r, w2) t = Reshape(d, flat)
  y2 = Gemm<transB=1>(t, table) y = Reshape(y2, back) }
""".replace("w2>", "w2, int64[2] flat = {-1,8}, int64[3] back = {-1,6,20}>")


def tokens(count: int = 64, seed: int = 0) -> dict[str, Array]:
    return {"ids": np.random.default_rng(seed).integers(0, 20, (count, 6))}


def test_an_embedding_that_is_the_head_too_is_not_refitted() -> None:
    model = network(TIED)
    result = recon(model, calibrate=tokens(), reconstruct="ls", exclude=("table",))
    np.testing.assert_array_equal(stored(result.model)["table"], stored(model)["table"])
    assert stored(result.model)["w2"].shape == (8, 8)
    assert not np.isin(stored(result.model)["w2"], stored(model)["w2"]).all()  # this one is


def test_a_tied_autoencoder_is_not_refitted_in_one_direction() -> None:
    text = """net (float[N,8] x) => (float[N,8] y) <float[8,16] w, float[16,16] m, float[16,16] n>
    { a = MatMul(x, w) r = Relu(a) b = MatMul(r, m) c = Relu(b) d = MatMul(c, n)
      y = Gemm<transB=1>(d, w) }"""
    model = network(text)
    result = recon(model, reconstruct="ls", exclude=("w",))
    np.testing.assert_array_equal(stored(result.model)["w"], stored(model)["w"])
    assert error(model, result.model) < error(
        model, recon(model, exclude=("w",), reconstruct="none").model
    )


def test_a_weight_that_is_an_output_too_stays() -> None:
    """What is left of it would be another output; its neighbours are refitted all the same."""
    text = """net (float[N,4] x) => (float[N,3] y, float[6,3] w2)
    <float[4,8] w0, float[8,6] w1, float[6,3] w2>
    { h = MatMul(x, w0) r = Relu(h) a = MatMul(r, w1) y = MatMul(a, w2) }"""
    model = network(text)
    result = recon(model, reconstruct="ls")
    np.testing.assert_array_equal(stored(result.model)["w2"], stored(model)["w2"])


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_the_file_only_makes(method: str) -> None:
    """ConstantOfShape: a bias of zeros, and a layer that sums up."""
    text = """net (float[N,4] x) => (float[N,3] y)
    <float[4,16] w1, float[16,8] w2, float[8,3] w4, int64[2] s = {8,8}, int64[1] z = {3}>
    {
        zero = ConstantOfShape(z)
        ones = ConstantOfShape<value = float[1] {1.0}>(s)
        h = MatMul(x, w1) r = Relu(h) a = MatMul(r, w2) b = MatMul(a, ones)
        c = Relu(b)
        m = MatMul(c, w4)
        y = Add(m, zero)
    }"""
    model = network(text)
    data = samples(model, 512)  # of a few, the judges would be 8
    result = recon(model, reconstruct=method, calibrate=data)
    onnx.checker.check_model(result.model, full_check=True)
    plain = recon(model, reconstruct="none", calibrate=data)
    assert error(model, result.model) <= error(model, plain.model)


def test_weights_in_constant_nodes_and_weights_that_are_inputs() -> None:
    constant = onnx.numpy_helper.from_array(
        redundant(np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)).T.copy()
    )
    model = _with_constant(constant)
    result = recon(model, reconstruct="ls")
    assert error(model, result.model) < 1e-3
    kinds = [node.op_type for node in result.model.graph.node]
    assert kinds.count("Constant") == 2


def _with_constant(first: onnx.TensorProto) -> onnx.ModelProto:
    """Two linear layers whose weights are Constant nodes."""
    second = onnx.numpy_helper.from_array(
        np.random.default_rng(1).standard_normal((16, 3)).astype(np.float32)
    )
    make = onnx.helper.make_node
    nodes = [
        make("Constant", [], ["w1"], value=first),
        make("Constant", [], ["w2"], value=second),
        make("MatMul", ["x", "w1"], ["h"]),
        make("MatMul", ["h", "w2"], ["y"]),
    ]
    kind = onnx.TensorProto.FLOAT
    x = onnx.helper.make_tensor_value_info("x", kind, ["N", 4])
    y = onnx.helper.make_tensor_value_info("y", kind, ["N", 3])
    graph = onnx.helper.make_graph(nodes, "net", [x], [y])
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )


# --- recurrent cells -----------------------------------------------------------------------------

CELLS = {
    "RNN": (1, ""),
    "LSTM": (4, ""),
    "GRU": (3, ""),
    "GRU that resets later": (3, "linear_before_reset=1, "),
}


def recurrent(cell: str, directions: int, *, bias: bool = True) -> str:
    """A layer, a cell of 8 units that reads its 12 results, and a layer behind."""
    gates, attributes = CELLS[cell]
    way = "bidirectional" if directions == 2 else "reverse"
    stored = f", float[{directions},{16 * gates}] b" if bias else ""
    return f"""net (float[9,N,4] x) => (float[9,{directions},N,3] y)
    <float[12,4] w0, float[{directions},{8 * gates},12] w, float[{directions},{8 * gates},8] r,
     float[8,3] w1{stored}>
    {{ u = Transpose<perm=[1,0]>(w0) f = MatMul(x, u)
      h = {cell.split()[0]}<hidden_size=8, {attributes}direction="{way}">(f, w, r{", b" * bias})
      y = MatMul(h, w1) }}"""


def two_of_each_unit(text: str, gates: int) -> onnx.ModelProto:
    """A network whose cell has every unit twice; the second ones have another weight behind."""
    values = {name: value.copy() for name, value in stored(network(text)).items()}
    for name in ("w", "r", "b"):
        halves = values[name].reshape(len(values[name]), -1, 8, *values[name].shape[2:])
        halves[:, :, 4:] = halves[:, :, :4]
    assert values["w"].shape[1] == 8 * gates
    return network(text, values=values)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_makes_up_for_redundant_inputs(cell: str, directions: int, bias: bool) -> None:
    model = with_redundant(recurrent(cell, directions, bias=bias), "w0")
    assert_recovered(model, exclude=["r"])


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "GRU"])
def test_a_cell_makes_up_for_redundant_units(cell: str, directions: int) -> None:
    model = two_of_each_unit(recurrent(cell, directions), CELLS[cell][0])
    assert_recovered(model, exclude=["w0"])


def test_cells_that_give_their_last_state_only() -> None:
    text = """net (float[9,N,4] x) => (float[1,N,3] y)
    <float[12,4] w0, float[1,32,12] w, float[1,32,8] r, float[1,64] b, float[1,32,12] w2,
     float[1,32,8] r2, float[1,64] b2, float[8,3] wo, float[8,3] wp>
    { u = Transpose<perm=[1,0]>(w0) f = MatMul(x, u)
      , h = LSTM<hidden_size=8>(f, w, r, b)
      , h2 = LSTM<hidden_size=8, direction="reverse">(f, w2, r2, b2)
      a = MatMul(h, wo) c = MatMul(h2, wp) y = Add(a, c) }"""
    assert_recovered(with_redundant(text, "w0"), exclude=["r", "r2"])


def test_a_gru_that_resets_the_state_keeps_what_multiplies_it() -> None:
    """What its matrix reads there is the state times a gate, which no value of the file holds."""
    model = two_of_each_unit(recurrent("GRU", 1), 3)
    result = recon(model, reconstruct="ls", exclude=["w0"])
    sliced = recon(model, reconstruct="none", exclude=["w0"])
    np.testing.assert_array_equal(stored(result.model)["r"], stored(sliced.model)["r"])
    assert (stored(result.model)["w1"] != stored(sliced.model)["w1"]).any()


@pytest.mark.parametrize("cell", ["RNN", "LSTM"])
def test_the_reference_sweep_refits_what_a_cell_reads(cell: str) -> None:
    model = with_redundant(recurrent(cell, 2), "w0")
    result = recon(model, reconstruct="obspa", exclude=["r"])
    assert error(model, result.model) < 0.1 * error(
        model, recon(model, reconstruct="none", exclude=["r"]).model
    )


# --- without data --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_what_redundant_channels_computed_comes_back_without_data(name: str) -> None:
    """It is the same whatever comes in."""
    text, names = NETWORKS[name]
    assert_recovered(with_redundant(text, *names), calibrate="data-free")


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_makes_up_for_redundant_inputs_without_data(cell: str) -> None:
    model = with_redundant(recurrent(cell, 2), "w0")
    assert_recovered(model, exclude=["r"], calibrate="data-free")


def test_shared_weights_of_two_branches_without_data() -> None:
    assert_recovered(with_redundant(BRANCHES, "w1"), calibrate="data-free")


FOLLOWED = {
    "conv": (
        """net (float[N,3,8,8] x) => (float[N,5,8,8] y)
        <float[8,3,1,1] w0, float[6,8,1,1] w1, float[6] b1, float[5,6,1,1] w2, float[5] b2>
        { a = Conv(x, w0) r = Relu(a) c = Conv(r, w1, b1) s = Relu(c) y = Conv(s, w2, b2) }""",
        ["w2"],
    ),
    "behind a cell": (
        """net (float[9,N,4] x) => (float[9,1,N,5] y)
        <float[4,8] w0, float[1,6,8] w1, float[1,6,6] r, float[1,12] b, float[6,5] w2, float[5] b2>
        { f = MatMul(x, w0) s = Relu(f) h = RNN<hidden_size=6>(s, w1, r, b)
          m = MatMul(h, w2) y = Add(m, b2) }""",
        ["r"],
    ),
    "behind a weight that is used again": (
        """net (float[N,8,4] x) => (float[N,8,3] y)
        <float[4,12] w0, float[12,12] w, float[12] b, float[12,6] w1, float[6] b1,
         float[6,3] w2, float[3] b2>
        { f = MatMul(x, w0) s = Relu(f) g = MatMul(s, w) gb = Add(g, b) a = Relu(gb)
          g2 = MatMul(a, w) gb2 = Add(g2, b) h = Relu(gb2) m = MatMul(h, w1) mb = Add(m, b1)
          t = Relu(mb) z = MatMul(t, w2) y = Add(z, b2) }""",
        ["w2"],
    ),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_without_data_a_layer_makes_up_for_its_own_inputs_only(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the layer before could not make up for looks different on data of another kind."""
    monkeypatch.setattr(reconstruct, "LOST", 1.0)  # whatever it does for the network
    text, exclude = FOLLOWED[name]
    model = network(text)
    for data, follows in (("data-free", True), (samples(model), False)):
        result = recon(model, calibrate=data, reconstruct="ls", exclude=exclude)
        assert not result.report["calibration"]["reconstruction"]["undone"]
        assert result.report["ratio"]["channels"] < 1
        after, before = stored(result.model), stored(model)
        assert all(np.array_equal(after[name], before[name]) for name in ("w2", "b2")) == follows


TOKENS = """
tokens (int64[N,6] ids) => (float[N,6,3] y) <float[40,8] table, float[8,16] w1, float[16,3] w2>
{ e = Gather(table, ids) h = MatMul(e, w1) r = Relu(h) y = MatMul(r, w2) }
"""


def test_random_tokens_only_refit_what_they_are_asked_to() -> None:
    model = network(TOKENS)
    by_default = recon(model, calibrate="data-free", ratio=0.5)
    assert "reconstruction" not in by_default.report["calibration"]
    assert by_default.report["options"]["reconstruct"] == "none"
    rows = {row.tobytes() for row in stored(model)["w2"]}
    assert {row.tobytes() for row in stored(by_default.model)["w2"]} < rows
    asked = recon(model, calibrate="data-free", ratio=0.5, reconstruct="ls")
    assert asked.report["calibration"]["reconstruction"]["layers"]
    given = recon(model, calibrate={"ids": np.arange(960).reshape(-1, 6) % 40})
    assert given.report["options"]["reconstruct"] == "ls"


def test_labels_that_are_text_do_not_stand_in_the_way() -> None:
    """As scikit-learn's exporter writes a classifier's."""
    model = network(
        "net (float[N,4] x) => (float[N,3] p) <float[4,16] w1, float[16,3] w2>"
        "{ h = MatMul(x, w1) r = Relu(h) s = MatMul(r, w2) p = Softmax(s) }"
    )
    make, kinds = onnx.helper, onnx.TensorProto
    pick = make.make_node("ArgMax", ["p"], ["best"], axis=1, keepdims=0)
    name = make.make_node(
        "ArrayFeatureExtractor", ["names", "best"], ["label"], domain="ai.onnx.ml"
    )
    model.graph.node.extend([pick, name])
    model.graph.initializer.append(make.make_tensor("names", kinds.STRING, [3], [b"a", b"b", b"c"]))
    model.graph.output.append(make.make_tensor_value_info("label", kinds.STRING, [1, None]))
    model.opset_import.append(make.make_opsetid("ai.onnx.ml", 3))
    data = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    result = prune(model, ratio=0.5, criterion="obspa", calibrate={"x": data})
    assert result.report["calibration"]["reconstruction"]["layers"]


# --- every method --------------------------------------------------------------------------------

OTHERS = {
    "chain": CHAIN,
    "lstm": """net (float[T,N,4] x) => (float[T,N,3] y)
    <float[1,32,4] w, float[1,32,8] r, float[1,64] b, float[8,16] w1, float[16,3] w2,
     int64[3] shape = {0,0,-1}>
    {
        h = LSTM<hidden_size = 8>(x, w, r, b)
        t = Transpose<perm=[0,2,1,3]>(h)
        f = Reshape(t, shape)
        a = MatMul(f, w1) c = Relu(a) y = MatMul(c, w2)
    }""",
    "integers out": """net (float[N,4] x) => (int64[N] best) <float[4,16] w1, float[16,3] w2>
    { h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) best = ArgMax<axis=1, keepdims=0>(y) }""",
    "both out": """net (float[N,4] x) => (float[N,3] y, int64[N] best)
    <float[4,16] w1, float[16,3] w2>
    { h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) best = ArgMax<axis=1, keepdims=0>(y) }""",
    "branch": """net (float[N,4] x) => (float[N,3] y)
    <float[4,16] w1, float[16,3] w2, float[4,3] w3>
    {
        h = MatMul(x, w1) r = Relu(h) m = MatMul(r, w2)
        s = ReduceSum<keepdims = 0>(x) c = Cast<to = 9>(s)
        y = If(c) <
            then_branch = one () => (float[N,3] t) { t = MatMul(x, w3) },
            else_branch = two () => (float[N,3] e) { e = Relu(m) }
        >
    }""",
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OTHERS)
def test_no_method_is_worse_than_none_on_held_out_data(name: str, method: str) -> None:
    model = network(OTHERS[name])
    plain, result = recon(model, reconstruct="none"), recon(model, reconstruct=method)
    onnx.checker.check_model(result.model, full_check=True)
    assert [v.SerializeToString() for v in result.model.graph.input] == [
        v.SerializeToString() for v in model.graph.input
    ]
    assert [v.name for v in result.model.graph.output] == [v.name for v in model.graph.output]
    assert result.plan.to_json() == plain.plan.to_json() if hasattr(plain.plan, "to_json") else True
    outputs(result.model, samples(model, 5))
    if method == "none":
        assert_same_outputs(result.model, plain.model, samples(model, 5))
        return
    reconstruction = result.report["calibration"]["reconstruction"]
    assert reconstruction["after"] <= reconstruction["before"]


@pytest.mark.parametrize("method", ["bias", "bn", "ls", "obspa"])
def test_every_method_helps_where_channels_are_redundant(method: str) -> None:
    model = with_redundant(LINEAR_CHAIN, "w1")
    assert error(model, recon(model, reconstruct=method).model) < error(
        model, recon(model, reconstruct="none").model
    )


def test_repairs_are_judged_on_samples_that_no_fit_has_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the layers' statistics, nor the fits, nor the measured sensitivities."""
    seen: dict[str, set[bytes]] = {"judged": set(), "learned": set()}
    stage = "learned"
    make, watch = reconstruct._outputs, pieces.Pieces.read

    def outputs(*arguments: Any) -> Any:
        nonlocal stage
        stage = "judged"
        try:
            return make(*arguments)
        finally:
            stage = "learned"

    def read(self: Any, indices: Any) -> Any:
        feeds = watch(self, indices)
        seen[stage].update(row.tobytes() for row in feeds["x"])
        return feeds

    monkeypatch.setattr(reconstruct, "_outputs", outputs)
    monkeypatch.setattr(pieces.Pieces, "read", read)
    model = with_redundant(LINEAR_CHAIN, "w1")
    result = recon(model, reconstruct="ls")
    counts = result.report["calibration"]
    parts = counts["fitted_to"], counts["held_out"], counts["judged_by"]
    assert parts == (42, 14, 8)
    assert len(seen["judged"]) == 8
    assert len(seen["learned"]) == 56
    assert not seen["judged"] & seen["learned"]


def test_a_method_that_hurts_is_undone() -> None:
    """What is fitted to says nothing of what is held out: one batch of zeros."""
    model = network(CHAIN)
    feeds = samples(model)
    before = model.SerializeToString()
    result = recon(model, reconstruct="ls", calibrate={"x": 0 * feeds["x"]})
    plain = recon(model, reconstruct="none", calibrate={"x": 0 * feeds["x"]})
    assert model.SerializeToString() == before
    for name, array in stored(plain.model).items():
        assert np.isfinite(stored(result.model)[name]).all()
        assert stored(result.model)[name].shape == array.shape


def test_a_repair_that_silences_the_network_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one of two channels that nearly cancel, the outputs are right but for their scale,
    and far off; constant outputs would have a lower error."""
    model = network(
        "net (float[N,4] x) => (float[N,1] y) <float[4,2] w1, float[2,1] w2>"
        "{ h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }"
    )
    for tensor, values in zip(
        model.graph.initializer, (np.ones((4, 2)), [[10.0], [-9.5]]), strict=True
    ):
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(values, np.float32), tensor.name))

    def silence(_: object, pruned: Any, *__: object) -> list[object]:
        weight = pruned.model.graph.initializers["w2"]
        weight.const_value = ir.tensor(0 * weight.const_value.numpy(), name="w2")
        return []

    plain = recon(model, reconstruct="none")
    monkeypatch.setattr("spa_graph.passes.reconstruct.repair", silence)
    result = recon(model, reconstruct="ls")
    assert result.report["calibration"]["reconstruction"]["undone"] is True
    assert result.report["calibration"]["reconstruction"]["before"] > 1
    assert_same_outputs(result.model, plain.model, samples(model, 5))


# --- reproducibility and limits ------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ls", "obspa"])
def test_two_runs_write_the_same_bytes(tmp_path: Path, method: str) -> None:
    model = with_redundant(LINEAR_CHAIN, "w1")
    paths = [tmp_path / "one.onnx", tmp_path / "two.onnx"]
    for path in paths:
        recon(model, flops=0.5, ratio=None, reconstruct=method, output=path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_input_is_not_changed(tmp_path: Path) -> None:
    model = with_redundant(LINEAR_CHAIN, "w1")
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(model, path)
    before = path.read_bytes()
    prune(path, ratio=0.5, calibrate=samples(model), output=out)
    assert path.read_bytes() == before
    serialized = model.SerializeToString()
    recon(model)
    assert model.SerializeToString() == serialized
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.onnx", "out.onnx"}
    assert_same_outputs(out, recon(model).model, samples(model, 5))


def test_features_that_wait_on_disk_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_redundant(LINEAR_CHAIN, "w1")
    first = recon(model)
    monkeypatch.setattr("spa_graph.passes.options.LEAST_MEMORY", 1)
    second = recon(model, memory_limit=1000)
    for name, array in stored(first.model).items():
        np.testing.assert_array_equal(stored(second.model)[name], array)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_samples_are_enough_to_run(count: int) -> None:
    model = network(CHAIN)
    result = recon(model, calibrate=samples(model, count))
    reconstruction = result.report["calibration"]["reconstruction"]
    assert reconstruction["after"] <= reconstruction["before"]
