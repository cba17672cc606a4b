"""Weights that stay in their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spa_graph.frontends.onnx import files, mapping
from spa_graph.frontends.onnx.weights import sliced, zeroed
from spa_graph.plan import AxisIndices
from tests.models import BIG, external_model, network

KEPT: AxisIndices = {0: np.array([0, 2, 5]), 2: np.array([1, 3])}
SHAPE = (7, 3, 4)
Transform = Callable[[ir.TensorProtocol, AxisIndices], ir.TensorProtocol]


def _weights(dtype: ir.DataType) -> ir.Tensor:
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 7
    return ir.Tensor(values.astype(dtype.numpy()), dtype=dtype, name="w")


@pytest.mark.parametrize("transform", [sliced, zeroed])
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.BFLOAT16, ir.DataType.INT4])
@pytest.mark.parametrize("chunk", [1, 50, 1 << 20])
def test_streamed_bytes_are_those_of_the_whole(
    transform: Transform,
    dtype: ir.DataType,
    chunk: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mapping, "CHUNK_BYTES", chunk)
    tensor = transform(_weights(dtype), KEPT)
    with (tmp_path / "raw").open("wb") as file:
        tensor.tofile(file)
    whole = ir.Tensor(tensor.numpy(), dtype=dtype)
    assert (tmp_path / "raw").read_bytes() == whole.tobytes()
    assert len(whole.tobytes()) == tensor.nbytes


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_weights_share_one_open_file(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    before = _open_files()
    model = files.load(path)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value.numpy()
    assert _open_files() - before == 1


def test_large_files_are_opened_as_their_own_external_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(network(BIG), path)
    monkeypatch.setattr(files, "COPIED_UP_TO", 0)
    with files.openable(path) as opened:
        slim, whole = onnx.load(opened), onnx.load(path)
        assert opened.stat().st_size < path.stat().st_size / 10
    assert not opened.exists()
    for mapped, tensor in zip(slim.graph.initializer, whole.graph.initializer, strict=True):
        first, second = map(onnx.numpy_helper.to_array, (mapped, tensor))
        np.testing.assert_array_equal(first, second)


def test_a_location_that_says_default(tmp_path: Path) -> None:
    """ONNX Runtime's quantiser writes it for weights that it read from external data."""
    model = network(BIG)
    for weight in model.graph.initializer:
        weight.data_location = onnx.TensorProto.DEFAULT
        assert weight.HasField("data_location")
    onnx.save(model, tmp_path / "big.onnx")
    read = files.load(tmp_path / "big.onnx")
    files.save(read, tmp_path / "again.onnx")
    again = onnx.load(tmp_path / "again.onnx")
    assert any(len(weight.raw_data) >= files.MAPPED_FROM for weight in model.graph.initializer)
    for weight in model.graph.initializer:
        want = onnx.numpy_helper.to_array(weight)
        value = read.graph.initializers[weight.name].const_value
        assert value is not None
        np.testing.assert_array_equal(value.numpy(), want)
        (other,) = (each for each in again.graph.initializer if each.name == weight.name)
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(other), want)


@pytest.mark.parametrize("external", [False, True])
def test_weights_are_not_declared_twice(external: bool, tmp_path: Path) -> None:
    """A `value_info` of a weight would have to be changed by whoever changes the weight."""
    path = tmp_path / "model.onnx"
    if external:
        path = external_model(tmp_path)
    else:
        onnx.save(network(BIG), path)
    model = files.load(path)
    shapes = {name: value.shape for name, value in model.graph.initializers.items()}
    assert all(shapes.values())
    files.save(model, tmp_path / "again.onnx")
    graph = onnx.load(tmp_path / "again.onnx", load_external_data=False).graph
    assert {weight.name for weight in graph.initializer} == set(shapes)
    assert not {value.name for value in graph.value_info} & set(shapes)
    assert {name: value.shape for name, value in model.graph.initializers.items()} == shapes
