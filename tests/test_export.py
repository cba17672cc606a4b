"""`spa_graph.export`: weights are found by their values, and the smaller models agree with ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from numpy.typing import NDArray

import spa_graph
from spa_graph import export
from spa_graph.errors import OptionError
from spa_graph.export.stored import StoredWeights

Array = NDArray[Any]
RANDOM = np.random.default_rng(0)


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
def weights() -> dict[str, Array]:
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
    data = RANDOM.standard_normal((64, 3, 8, 8)).astype(np.float32)
    result = spa_graph.prune(model, flops=0.5, calibrate=data, reconstruct="bias")
    stored = StoredWeights(model, result.model, result.plan)
    found = stored.find(weights["third"])
    assert found is not None
    after = {each.name: onnx.numpy_helper.to_array(each) for each in result.model.graph.initializer}
    assert np.allclose(stored.shift(found, 1), after["last"] - weights["last"])


def test_a_plan_for_another_network(weights: dict[str, Array], stored: StoredWeights) -> None:
    other = network(**weights)
    for node in other.graph.node:
        node.input[:] = ["renamed" if name == "first" else name for name in node.input]
    other.graph.initializer[0].name = "renamed"
    with pytest.raises(OptionError, match="no weight `first`"):
        StoredWeights(other, other, stored.plan)


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


def test_flax(tmp_path: Path) -> None:
    nnx = pytest.importorskip("flax.nnx")
    jax2onnx = pytest.importorskip("jax2onnx")

    class Net(nnx.Module):  # type: ignore[name-defined, misc]
        def __init__(self, rngs: Any) -> None:
            self.first = nnx.Conv(3, 16, (3, 3), use_bias=False, rngs=rngs)
            self.norm = nnx.BatchNorm(16, use_running_average=True, rngs=rngs)
            self.second = nnx.Conv(16, 16, (3, 3), rngs=rngs)
            self.third = nnx.Conv(16, 24, (3, 3), strides=2, rngs=rngs)
            self.hidden = nnx.Linear(24, 32, rngs=rngs)
            self.scale = nnx.LayerNorm(32, rngs=rngs)
            self.head = nnx.Linear(32, 10, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = nnx.relu(self.norm(self.first(x)))
            x = nnx.relu(self.third(nnx.relu(x + self.second(x)))).mean((1, 2))
            return self.head(nnx.relu(self.scale(self.hidden(x))))

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
