"""`spa_graph.export`: weights are found by their values, and the smaller models agree with ONNX."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from numpy.typing import NDArray

import spa_graph
from spa_graph import export
from spa_graph.errors import OptionError, VerificationError
from spa_graph.export.heads import fit_heads
from spa_graph.export.stored import StoredWeights
from spa_graph.plan import Plan

Array = NDArray[Any]
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def start_of_numbers() -> None:
    """Each module's fixtures get the same numbers, whatever ran before."""
    RANDOM.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture(autouse=True)
def numbers() -> None:
    """Each test gets the same numbers."""
    RANDOM.bit_generator.state = np.random.default_rng(1).bit_generator.state


def weight(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def network(**weights: Array) -> onnx.ModelProto:
    """Conv (6 filters), Conv, mean over space, MatMul, Add."""
    nodes = [
        oh.make_node("Conv", ["x", "first", "bias"], ["a"], pads=[1, 1, 1, 1]),
        oh.make_node("Relu", ["a"], ["b"]),
        oh.make_node("Conv", ["b", "second"], ["c"]),
        oh.make_node("Relu", ["c"], ["d"]),
        oh.make_node("GlobalAveragePool", ["d"], ["e"]),
        oh.make_node("Flatten", ["e"], ["f"]),
        oh.make_node("MatMul", ["f", "third"], ["g"]),
        oh.make_node("Add", ["g", "last"], ["y"]),
    ]
    inputs = [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 8, 8])]
    outputs = [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])]
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = oh.make_graph(nodes, "g", inputs, outputs, stored)
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def weights(start_of_numbers: None) -> dict[str, Array]:  # noqa: ARG001
    return {
        "first": weight(6, 3, 3, 3), "bias": weight(6), "second": weight(8, 6, 1, 1),
        "third": weight(8, 4), "last": weight(4),
    }  # fmt: skip


@pytest.fixture(scope="module")
def stored(weights: dict[str, Array]) -> StoredWeights:
    model = network(**weights)
    result = spa_graph.prune(model, flops=0.5)
    return StoredWeights(model, result.model, result.plan)


def test_a_transposed_weight_is_found(weights: dict[str, Array], stored: StoredWeights) -> None:
    found = stored.find(weights["second"].transpose(2, 3, 1, 0))
    assert found is not None and found.name == "second"
    kept = stored.plan.kept["second"]
    assert np.array_equal(found.kept[2], kept[1]) and np.array_equal(found.kept[3], kept[0])
    expected = weights["second"][kept[0]][:, kept[1]].transpose(2, 3, 1, 0)
    assert np.array_equal(found.after, expected)


def test_axes_of_one_element_may_be_missing(
    weights: dict[str, Array], stored: StoredWeights
) -> None:
    found = stored.find(weights["second"][:, :, 0, 0])
    assert found is not None and found.name == "second" and found.after.ndim == 2


def test_a_folded_scale_is_found(weights: dict[str, Array], stored: StoredWeights) -> None:
    scale = np.array([1, -2, 3, 0.5, 5, 7], np.float32)
    plain = (weights["first"] / scale[:, None, None, None]).transpose(2, 3, 1, 0)
    assert stored.find(plain) is None
    found = stored.find_scaled(plain, (3, 2, 0, 1), 3)
    assert found is not None and found.name == "first" and found.scale is not None
    assert np.allclose(found.scale, scale)
    assert np.allclose(found.after, plain[..., stored.plan.kept["first"][0]])


def recurrent_network(**weights: Array) -> onnx.ModelProto:
    """A bidirectional LSTM: gates i o f c, one below the other, in each direction."""
    names = ["x", "inputs", "states", "biases"]
    hidden = weights["states"].shape[2]
    cell = oh.make_node("LSTM", names, ["y"], hidden_size=hidden, direction="bidirectional")
    x = oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [5, "n", 6])
    y = oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [5, 2, "n", hidden])
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = oh.make_graph([cell], "g", [x], [y], stored)
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("direction", [0, 1])
def test_gates_in_another_order_are_found(direction: int) -> None:
    """Gates i f c o side by side, in a kernel of its own for each direction, as Keras has them."""
    gates = {name: weight(2, 4, 8, size) for name, size in {"inputs": 6, "states": 8}.items()}
    biases = weight(2, 2, 4, 8)
    left, shift = np.array([1, 4, 6]), weight(2, 2, 4, 3)
    every = (left[None] + 8 * np.arange(4)[:, None]).reshape(-1)
    dense = recurrent_network(
        inputs=gates["inputs"].reshape(2, 32, 6), states=gates["states"].reshape(2, 32, 8),
        biases=biases.reshape(2, 64),
    )  # fmt: skip
    states = gates["states"][:, :, left][..., left]
    small = recurrent_network(
        inputs=gates["inputs"][:, :, left].reshape(2, 12, 6), states=states.reshape(2, 12, 3),
        biases=(biases[..., left] + shift).reshape(2, 24),
    )  # fmt: skip
    both = np.concatenate([every, every + 32])
    plan = Plan({}, {"inputs": {1: every}, "states": {1: every, 2: left}, "biases": {1: both}})
    stored = StoredWeights(dense, small, plan)

    ours = [0, 2, 3, 1]
    for part, name in enumerate(gates):
        kernel = gates[name][direction, ours]  # (gates, hidden, in)
        found = stored.find(kernel.reshape(32, -1).T)
        assert found is not None and found.name == name and found.shift is not None
        expected = kernel[:, left] if name == "inputs" else kernel[:, left][..., left]
        assert np.array_equal(found.after, expected.reshape(12, -1).T)
        assert found.kept[1] is not None and np.array_equal(found.kept[1], every)
        added = shift[direction, part, ours].reshape(-1)
        assert np.allclose(found.shift, np.broadcast_to(added, found.shift.shape), atol=1e-6)


@pytest.mark.parametrize(
    ("left", "found"), [([4, 5, 6, 7], True), ([1, 2, 5, 6], True), ([0, 1, 4, 6], False)]
)
def test_merged_heads_are_found(weights: dict[str, Array], left: list[int], found: bool) -> None:
    """2 heads of 4 elements each: one is gone, or some elements of both; not some of each."""
    small = weights | {"third": weights["third"][left]}
    plan = Plan({}, {"third": {0: np.array(left)}})
    stored = StoredWeights(network(**weights), network(**small), plan)
    match = stored.find(weights["third"].reshape(2, 4, 4))
    assert (match is not None) == found
    if match is not None:
        assert np.array_equal(match.after.reshape(len(left), 4), weights["third"][left])


def attention(x: Array, weights: dict[tuple[str, str], Array]) -> Array:
    """What attention layers of frameworks compute for (tokens, features)."""
    query, key, value = (
        np.einsum("ti,ihs->hts", x, weights[part, "kernel"]) + weights[part, "bias"][:, None]
        for part in ("query", "key", "value")
    )
    scores = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1]))
    mixed = scores / scores.sum(-1, keepdims=True) @ value
    return np.einsum("hts,hso->to", mixed, weights["out", "kernel"])


@pytest.mark.parametrize(("size", "value_size"), [(8, 8), (4, 4), (4, 6), (6, 4)])
def test_heads_of_another_size(size: int, value_size: int) -> None:
    """Heads of queries had 8 elements: the result is as if the root of 8 still divided."""
    sizes = {"query": size, "key": size, "value": value_size}
    weights = {(part, "kernel"): weight(5, 2, each) for part, each in sizes.items()}
    weights |= {(part, "bias"): weight(2, each) for part, each in sizes.items()}
    weights["out", "kernel"] = weight(2, value_size, 5)
    x = weight(7, 5)
    query = {
        ("query", name): weights["query", name] * np.sqrt(size / 8) for name in ("kernel", "bias")
    }
    expected = attention(x, weights | query)
    for one_size in (False, True):
        fitted = fit_heads(weights, 8, one_size=one_size)
        assert np.allclose(attention(x, fitted), expected, atol=1e-5)
        alike = fitted["query", "kernel"].shape == fitted["value", "kernel"].shape
        assert alike == (one_size or size == value_size)


def test_zeros_in_normalised_heads() -> None:
    weights = {(part, "kernel"): weight(5, 2, 4) for part in ("query", "key")}
    weights |= {("value", "kernel"): weight(5, 2, 6), ("out", "kernel"): weight(2, 6, 5)}
    weights["query_ln", "scale"] = weight(4)
    with pytest.raises(OptionError, match="4 elements left, those of values 6"):
        fit_heads(weights, 8, one_size=True)


def test_swapped_models_are_refused(weights: dict[str, Array]) -> None:
    model = network(**weights)
    result = spa_graph.prune(model, flops=0.5)
    with pytest.raises(OptionError, match="give the original first, then the pruned model"):
        StoredWeights(result.model, model, result.plan)


def test_other_values_are_not_found(weights: dict[str, Array], stored: StoredWeights) -> None:
    assert stored.find(weights["second"] * 2) is None
    assert stored.find_scaled(weight(3, 3, 3, 6), (3, 2, 0, 1), 3) is None


def test_equal_weights_that_lose_different_channels_are_not_found(
    weights: dict[str, Array],
) -> None:
    """Which of two vectors of zeros an array is can't be told by its values."""
    ambiguous = weights | {"first": weight(8, 3, 3, 3), "second": weight(8, 8, 1, 1)}
    ambiguous |= {"bias": np.zeros(8, np.float32)}
    model = network(**ambiguous)
    model.graph.node[2].input.append("other")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(8, np.float32), "other"))
    result = spa_graph.prune(model, flops=0.5)
    kept = result.plan.kept
    assert not np.array_equal(kept["bias"][0], kept["other"][0])
    assert StoredWeights(model, result.model, result.plan).find(np.zeros(8, np.float32)) is None


def test_what_a_refit_added_to_results(weights: dict[str, Array]) -> None:
    model = network(**weights)
    data = (1 + RANDOM.standard_normal((64, 3, 8, 8))).astype(np.float32)
    result = spa_graph.prune(model, flops=0.5, calibrate=data, reconstruct="bias")
    stored = StoredWeights(model, result.model, result.plan)
    found = stored.find(weights["third"])
    assert found is not None
    after = {each.name: onnx.numpy_helper.to_array(each) for each in result.model.graph.initializer}
    assert found.shift is not None
    assert np.allclose(found.shift, np.tile(after["last"] - weights["last"], (len(found.after), 1)))


def test_a_plan_for_another_network(weights: dict[str, Array], stored: StoredWeights) -> None:
    other = network(**weights)
    for node in other.graph.node:
        node.input[:] = ["renamed" if name == "first" else name for name in node.input]
    other.graph.initializer[0].name = "renamed"
    with pytest.raises(OptionError, match="no weight `first`"):
        StoredWeights(other, other, stored.plan)


def test_forms_of_a_plan(weights: dict[str, Array], stored: StoredWeights, tmp_path: Path) -> None:
    """The plan, what its file holds, the file; nothing else."""
    models = network(**weights), stored.after
    stored.plan.save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    for given in (stored.plan, data, tmp_path / "plan.json", str(tmp_path / "plan.json")):
        assert StoredWeights(*models, given).plan.kept.keys() == stored.plan.kept.keys()
    wrong: Any
    for wrong in (None, models):
        with pytest.raises(OptionError, match=r"is no plan; give `result\.plan`, or the file that"):
            StoredWeights(*models, wrong)
    with pytest.raises(OptionError, match="must be a JSON object with format 'spa-plan/1'"):
        StoredWeights(*models, {"kept": {}})


@pytest.mark.parametrize(
    ("function", "package", "says"),
    [
        (export.to_keras, "keras", r"to_keras needs keras: pip install 'spa-prune\[tensorflow\]'"),
        (export.to_flax, "flax", "to_flax needs flax: pip install 'flax'"),
        (partial(export.to_torch, example_inputs=()), "torch",
         r"to_torch needs torch: pip install 'spa-prune\[torch\]'"),
    ],
)  # fmt: skip
def test_without_the_framework(
    function: Any, package: str, says: str, stored: StoredWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [each for each in sys.modules if each.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OptionError, match=says):
        function("model", stored.before, stored.after, stored.plan)


@pytest.mark.parametrize(
    ("function", "package", "says"),
    [
        (export.to_keras, "keras", r"takes a keras.Model, as of keras.saving.load_model\('NAME"),
        (export.to_flax, "flax", "takes an nnx.Module, or the variables of a linen module"),
    ],
)
def test_what_is_no_model_of_the_framework(
    function: Any, package: str, says: str, stored: StoredWeights
) -> None:
    pytest.importorskip(package)
    with pytest.raises(OptionError, match=f"{says}.*; what was given is a str"):
        function(f"file.{package}", stored.before, stored.after, stored.plan)


def test_keras(tmp_path: Path) -> None:
    """Folded and unfolded normalisation, depthwise convolution, squeeze and excitation."""
    keras = pytest.importorskip("keras")
    pytest.importorskip("tf2onnx")
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Conv2D(16, 1)(y))
    x = layers.ReLU()(layers.Add()([x, y]))
    s = layers.GlobalAveragePooling2D()(x)
    s = layers.Dense(8, activation="relu")(layers.Reshape((1, 1, 16))(s))
    x = layers.Multiply()([x, layers.Dense(16, activation="sigmoid")(s)])
    x = layers.Concatenate()([x, layers.Conv2D(8, 3, padding="same")(x)])
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.ReLU()(layers.Conv2D(24, 3, strides=2)(x))
    x = layers.Dense(32, activation="relu")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(10)(x))
    for variable in model.weights:
        variable.assign(variable + 0.1 * np.abs(RANDOM.standard_normal(variable.shape)))
    model(np.zeros((2, 16, 16, 3), np.float32))
    path = tmp_path / "keras.onnx"
    model.export(path, format="onnx", verbose=False)
    data = RANDOM.standard_normal((64, 16, 16, 3)).astype(np.float32)
    for options in ({}, {"calibrate": data}):
        result = spa_graph.prune(path, flops=0.5, **options)
        small = export.to_keras(model, path, result.model, result.plan)  # compares outputs
        assert small.count_params() < 0.8 * model.count_params()


def test_keras_sums_and_models_trained_since(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    pytest.importorskip("tf2onnx")
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(16)(inputs)
    hidden = hidden + keras.layers.Dense(16)(hidden)  # an operation, no layer
    model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(hidden))
    model(np.zeros((2, 8), np.float32))
    path = tmp_path / "keras.onnx"
    model.export(path, format="onnx", verbose=False)
    result = spa_graph.prune(path, flops=0.5)
    small = export.to_keras(model, path, result.model, result.plan)  # compares outputs
    assert small.count_params() < 0.7 * model.count_params()
    bias, kernel = model.layers[-1].bias, model.layers[-1].kernel
    bias.assign(bias + np.eye(4)[0])  # which a softmax of large inputs may hide
    with pytest.raises(VerificationError):
        export.to_keras(model, path, result.model, result.plan)
    bias.assign(bias - np.eye(4)[0])
    kernel.assign(kernel + 0.1)
    with pytest.raises(OptionError, match="trained since, export and prune it again"):
        export.to_keras(model, path, result.model, result.plan)


KERAS = {
    "lstm": lambda k: [
        k.Bidirectional(k.LSTM(12, return_sequences=True)), k.LSTM(12, return_sequences=True),
        k.Bidirectional(k.LSTM(10), merge_mode="sum"),
    ],
    "gru": lambda k: [
        k.GRU(12, unroll=True, return_sequences=True), k.LayerNormalization(),
        k.GRU(12, unroll=True),
    ],
    "rnn": lambda k: [k.SimpleRNN(16, unroll=True), k.Dense(24, activation=_swish)],
    "cells": lambda k: [k.RNN([k.LSTMCell(12), k.GRUCell(14)], unroll=True)],
    "time distributed": lambda k: [
        k.TimeDistributed(k.Dense(16, activation="relu")), k.BatchNormalization(), k.LSTM(12),
    ],
    "multi-head": lambda k: [_residual(k, k.MultiHeadAttention(4, 8))],
    "values": lambda k: [_residual(k, k.MultiHeadAttention(4, 8, value_dim=6, output_shape=24))],
    "group query": lambda k: [_residual(k, k.GroupQueryAttention(8, 4, 2))],
}  # fmt: skip
"""Layers between an input of (8, 6) and a Dense layer, by what they show."""


def _swish(x: Any) -> Any:
    return x / (1 + 2 ** (-x))


_swish.__name__ = "swish"  # Keras has another function of this name


def _residual(layers: Any, attention: Any) -> Any:
    """Attention behind a Dense layer, and around it."""

    def block(x: Any) -> Any:
        x = layers.Dense(24)(x)
        y = attention(x, x)
        return layers.GlobalAveragePooling1D()(layers.Add()([x, y]))

    return block


def _keras(name: str, path: Path) -> Any:
    """A network with weights as if trained, and its export."""
    keras = pytest.importorskip("keras")
    pytest.importorskip("tf2onnx")
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((8, 6))
    for layer in KERAS[name](keras.layers):
        x = layer(x)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    for variable in model.weights:
        if variable.dtype == "float32":
            variable.assign(variable + 0.1 * np.abs(RANDOM.standard_normal(variable.shape)))
    model(np.zeros((2, 8, 6), np.float32))
    model.export(path, format="onnx", verbose=False)
    return model


@pytest.mark.parametrize("name", KERAS)
@pytest.mark.parametrize("options", [{}, {"attention": "head-dim"}, {"calibrate": True}], ids=str)
def test_keras_layers(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = _keras(name, tmp_path / "keras.onnx")
    if "calibrate" in options:
        options = {"calibrate": RANDOM.standard_normal((64, 8, 6)).astype(np.float32)}
    result = spa_graph.prune(tmp_path / "keras.onnx", flops=0.7, **options)
    small = export.to_keras(model, tmp_path / "keras.onnx", result.model, result.plan)  # compares
    assert small.count_params() < 0.9 * model.count_params()


KERAS_IMAGES = {
    "groups": lambda k: [k.GroupNormalization(4), k.ReLU()],
    "shared slopes": lambda k: [k.PReLU(shared_axes=[1, 2])],
    "slopes": lambda k: [k.PReLU()],
}
"""Layers between two convolutions of images, by what they show."""


@pytest.mark.parametrize("name", KERAS_IMAGES)
@pytest.mark.parametrize("options", [{}, {"groups": "within"}], ids=str)
def test_keras_layers_of_images(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    pytest.importorskip("tf2onnx")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((8, 8, 3)), layers.Conv2D(16, 3), *KERAS_IMAGES[name](layers),
        layers.Conv2D(12, 3), layers.GlobalAveragePooling2D(), layers.Dense(10),
    ])  # fmt: skip
    for variable in model.weights:
        if variable.dtype == "float32":
            variable.assign(variable + 0.1 * np.abs(RANDOM.standard_normal(variable.shape)))
    model(np.zeros((2, 8, 8, 3), np.float32))
    model.export(tmp_path / "keras.onnx", format="onnx", verbose=False)
    result = spa_graph.prune(tmp_path / "keras.onnx", flops=0.6, **options)
    small = export.to_keras(model, tmp_path / "keras.onnx", result.model, result.plan)  # compares
    assert small.layers[0].filters < 16


def test_keras_models_in_models(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    pytest.importorskip("tf2onnx")
    layers = keras.layers
    inputs = keras.Input((8, 6))
    x = layers.Dense(16, activation="relu")(inputs)
    inner = keras.Model(inputs, layers.LSTM(12, return_sequences=True)(x))
    inputs = keras.Input((8, 6))
    x = layers.LSTM(9)(layers.BatchNormalization()(inner(inputs)))
    model = keras.Model(inputs, layers.Dense(10)(x))
    model(np.zeros((2, 8, 6), np.float32))
    model.export(tmp_path / "keras.onnx", format="onnx", verbose=False)
    result = spa_graph.prune(tmp_path / "keras.onnx", flops=0.6)
    small = export.to_keras(model, tmp_path / "keras.onnx", result.model, result.plan)
    assert small.count_params() < 0.8 * model.count_params()


def test_a_keras_layer_that_has_no_such_size(tmp_path: Path) -> None:
    """The output of GroupQueryAttention is as wide as its queries' input: nothing states it."""
    keras = pytest.importorskip("keras")
    pytest.importorskip("tf2onnx")
    layers = keras.layers
    inputs = keras.Input((8, 24))
    x = layers.GroupQueryAttention(8, 4, 2)(inputs, inputs)
    x = layers.Dense(10)(layers.GlobalAveragePooling1D()(x))
    model = keras.Model(inputs, x)
    model(np.zeros((2, 8, 24), np.float32))
    model.export(tmp_path / "keras.onnx", format="onnx", verbose=False)
    result = spa_graph.prune(tmp_path / "keras.onnx", ratio=0.3, scope=["ffn", "residual"])
    with pytest.raises(OptionError, match="attention_output/kernel` with the sizes that are left"):
        export.to_keras(model, tmp_path / "keras.onnx", result.model, result.plan)


def test_keras_convolutional_cells(tmp_path: Path) -> None:
    """The exporter cuts their kernels into one for each gate."""
    keras = pytest.importorskip("keras")
    pytest.importorskip("tf2onnx")
    layers = keras.layers
    inputs = keras.Input((3, 6, 6, 2))
    x = layers.ConvLSTM2D(8, 3, padding="same", unroll=True)(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(12, 1, activation="relu")(x))
    model = keras.Model(inputs, layers.Dense(5)(x))
    model(np.zeros((2, 3, 6, 6, 2), np.float32))
    model.export(tmp_path / "keras.onnx", format="onnx", verbose=False)
    result = spa_graph.prune(tmp_path / "keras.onnx", flops=0.6)
    with pytest.raises(OptionError, match="kernel` is not stored in the ONNX model as it is in K"):
        export.to_keras(model, tmp_path / "keras.onnx", result.model, result.plan)


def test_a_keras_layer_without_bias(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    pytest.importorskip("tf2onnx")
    layers = keras.layers
    cells = layers.LSTM(12, return_sequences=True), layers.LSTM(12, use_bias=False)
    model = keras.Sequential([keras.Input((8, 6)), *cells, layers.Dense(10)])
    model(np.zeros((2, 8, 6), np.float32))
    model.export(tmp_path / "keras.onnx", format="onnx", verbose=False)
    data = RANDOM.standard_normal((64, 8, 6)).astype(np.float32) + 1
    result = spa_graph.prune(tmp_path / "keras.onnx", flops=0.6, calibrate=data)
    with pytest.raises(OptionError, match="no bias for what the refit added: prune with"):
        export.to_keras(model, tmp_path / "keras.onnx", result.model, result.plan)


def test_flax(tmp_path: Path) -> None:
    nnx = pytest.importorskip("flax.nnx")
    jax2onnx = pytest.importorskip("jax2onnx")

    class Net(nnx.Module):  # type: ignore[name-defined, misc]
        def __init__(self, rngs: Any) -> None:
            self.first = nnx.Conv(3, 16, (3, 3), use_bias=False, rngs=rngs)
            self.norm = nnx.BatchNorm(16, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.second = nnx.Conv(16, 16, (3, 3), rngs=rngs)
            self.third = nnx.Conv(16, 24, (3, 3), strides=2, rngs=rngs)
            self.hidden = nnx.Linear(24, 32, rngs=rngs)
            self.scale = nnx.LayerNorm(32, rngs=rngs)
            self.head = nnx.Linear(32, 10, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = nnx.relu(self.norm(self.first(x)))
            x = nnx.relu(self.third(nnx.relu(x + self.second(x)))).mean((1, 2))
            return self.head(self.dropout(nnx.relu(self.scale(self.hidden(x)))))

    model = Net(nnx.Rngs(0))
    state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    for _, variable in state.flat_state():
        noise = 0.1 * np.abs(RANDOM.standard_normal(variable.shape))
        variable.set_value(variable.get_value() + noise.astype(np.float32))
    nnx.update(model, state)
    model.eval()
    path = tmp_path / "flax.onnx"
    jax2onnx.to_onnx(model, [("B", 16, 16, 3)], return_mode="file", output_path=str(path))
    data = RANDOM.standard_normal((64, 16, 16, 3)).astype(np.float32)
    for options in ({}, {"calibrate": data}):
        result = spa_graph.prune(path, flops=0.5, **options)
        small = export.to_flax(model, path, result.model, result.plan)  # compares outputs
        assert small.first.out_features == small.second.in_features < 16
    model.train()
    before = np.array(model.norm.mean.get_value())
    small = export.to_flax(model, path, result.model, result.plan)  # compares as in evaluation
    assert not small.dropout.deterministic and not small.norm.use_running_average
    assert np.array_equal(model.norm.mean.get_value(), before)


def _as_if_trained(nnx: Any, model: Any) -> Any:
    state = nnx.state(model, nnx.Param)
    for _, variable in nnx.to_flat_state(state):
        noise = 0.1 * np.abs(RANDOM.standard_normal(variable.shape))
        variable.set_value(variable.get_value() + noise.astype(np.float32))
    nnx.update(model, state)
    model.eval()
    return model


def _flax(build: Any, path: Path) -> Any:
    """An nnx network of (4, 6) with weights as if trained, and its export."""
    nnx = pytest.importorskip("flax.nnx")
    jax2onnx = pytest.importorskip("jax2onnx")
    jnp = pytest.importorskip("jax.numpy")

    class Net(nnx.Module):  # type: ignore[name-defined, misc]
        def __init__(self, rngs: Any) -> None:
            self.first = nnx.Linear(6, 24, rngs=rngs)
            self.layer = build(nnx, rngs)
            self.head = nnx.Linear(24, 10, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = nnx.relu(self.first(x))
            if not hasattr(self.layer, "hidden_features"):
                return self.head((x + self.layer(x)).mean(1))
            state = jnp.zeros((x.shape[0], self.layer.hidden_features))
            carry = (state, state) if "LSTM" in type(self.layer).__name__ else state
            for step in range(x.shape[1]):
                carry, y = self.layer(carry, x[:, step])
            return self.head(y)

    model = _as_if_trained(nnx, Net(nnx.Rngs(0)))
    jax2onnx.to_onnx(model, [("B", 4, 6)], return_mode="file", output_path=str(path))
    return model


FLAX = {
    **{
        cell: lambda nnx, rngs, cell=cell: getattr(nnx, cell)(24, 24, rngs=rngs)
        for cell in ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell")
    },
    "multi-head": lambda nnx, rngs: nnx.MultiHeadAttention(3, 24, decode=False, rngs=rngs),
    "grouped": lambda nnx, rngs: nnx.MultiHeadAttention(
        4, 24, num_kv_heads=2, decode=False, rngs=rngs
    ),
    "normalised": lambda nnx, rngs: nnx.MultiHeadAttention(
        4, 24, normalize_qk=True, decode=False, rngs=rngs
    ),
}


@pytest.mark.parametrize("name", FLAX)
@pytest.mark.parametrize("options", [{}, {"attention": "head-dim"}, {"calibrate": True}], ids=str)
def test_flax_layers(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    nnx = pytest.importorskip("flax.nnx")
    path = tmp_path / "flax.onnx"
    model = _flax(FLAX[name], path)
    if "calibrate" in options:
        options = {"calibrate": RANDOM.standard_normal((64, 4, 6)).astype(np.float32)}
    result = spa_graph.prune(path, flops=0.6, **options)
    if name == "normalised" and "attention" in options:
        with pytest.raises(OptionError, match="normalises queries: prune whole heads"):
            export.to_flax(model, path, result.model, result.plan)
        return
    small = export.to_flax(model, path, result.model, result.plan)  # compares outputs
    left, whole = (
        sum(each.get_value().size for _, each in nnx.to_flat_state(nnx.state(net, nnx.Param)))
        for net in (small, model)
    )
    assert left < 0.8 * whole


def test_flax_groups(tmp_path: Path) -> None:
    nnx = pytest.importorskip("flax.nnx")
    jax2onnx = pytest.importorskip("jax2onnx")

    class Net(nnx.Module):  # type: ignore[name-defined, misc]
        def __init__(self, rngs: Any) -> None:
            self.conv = nnx.Conv(3, 16, (3, 3), rngs=rngs)
            self.norm = nnx.GroupNorm(16, num_groups=4, rngs=rngs)
            self.head = nnx.Linear(16, 10, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))

    model, path = _as_if_trained(nnx, Net(nnx.Rngs(0))), tmp_path / "flax.onnx"
    jax2onnx.to_onnx(model, [("B", 8, 8, 3)], return_mode="file", output_path=str(path))
    result = spa_graph.prune(path, flops=0.6)
    small = export.to_flax(model, path, result.model, result.plan)  # compares outputs
    assert small.conv.out_features == small.norm.num_groups * small.norm.group_size < 16


def test_linen_variables(tmp_path: Path) -> None:
    """Attention and an LSTM cell; the caller builds the module with the sizes that are left."""
    linen = pytest.importorskip("flax.linen")
    jax2onnx = pytest.importorskip("jax2onnx")
    jax = pytest.importorskip("jax")

    class Net(linen.Module):  # type: ignore[name-defined, misc]
        width: int = 24
        heads: int = 4
        size: int = 6
        hidden: int = 12

        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.relu(linen.Dense(self.width, name="first")(x))
            attention = linen.MultiHeadDotProductAttention(
                self.heads, qkv_features=self.heads * self.size, name="attention"
            )
            x = x + attention(x)
            cell = linen.OptimizedLSTMCell(self.hidden, name="cell")
            carry = tuple(jax.numpy.zeros((x.shape[0], self.hidden)) for _ in range(2))
            for step in range(x.shape[1]):
                carry, y = cell(carry, x[:, step])
            return linen.Dense(10)(y)

    variables = Net().init(jax.random.key(0), np.zeros((1, 4, 6), np.float32))
    path = tmp_path / "linen.onnx"

    def whole(x: Any) -> Any:
        return Net().apply(variables, x)

    def apply(left: Any, x: Any) -> Any:
        of = left["params"]
        width, heads, size = of["attention"]["query"]["kernel"].shape
        return Net(width, heads, size, of["cell"]["hi"]["kernel"].shape[0]).apply(left, x)

    jax2onnx.to_onnx(whole, [("B", 4, 6)], return_mode="file", output_path=str(path))
    for options in ({}, {"attention": "head-dim"}):
        result = spa_graph.prune(path, flops=0.5, **options)
        small = export.to_flax(variables, path, result.model, result.plan, apply)  # compares
        assert small["params"]["cell"]["hi"]["kernel"].shape[0] < 12
    with pytest.raises(OptionError, match="need `apply`"):
        export.to_flax(variables, path, result.model, result.plan)
