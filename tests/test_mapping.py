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
