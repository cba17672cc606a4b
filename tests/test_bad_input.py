"""A file or a network that can't be pruned: one clear line, exit code 2, no file left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

import spa_graph
from spa_graph import ModelError
from tests.conftest import Command, assert_refused
from tests.models import BIG, CHAIN, MLP, RESIDUAL, external_model, network

# --- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"hello, this is not a network", b"PK\x03\x04" + bytes(100), os.urandom(5000),
     json.dumps({"a": 1}).encode()],
    ids=["empty", "zero", "text", "zip", "noise", "json"],
)  # fmt: skip
def test_a_file_that_is_not_onnx(command: Command, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    says = "is not an ONNX model" if content else "is empty"
    assert_refused(command, tmp_path, path, "--flops", 0.5, says=says)
    assert_refused(command, tmp_path, "inspect", path, says=says)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999])
def test_a_truncated_file(command: Command, tmp_path: Path, share: float) -> None:
    path = tmp_path / "model.onnx"
    content = network(BIG).SerializeToString()
    path.write_bytes(content[: int(len(content) * share)])
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="model.onnx")


def test_every_truncation_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    content = network(MLP).SerializeToString()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError):
            spa_graph.prune(path, flops=0.5, verify=False)


@pytest.mark.parametrize("text", [MLP, CHAIN, RESIDUAL], ids=["mlp", "chain", "residual"])
def test_a_file_with_some_wrong_bytes(tmp_path: Path, text: str) -> None:
    """Either it still is a network, or the error is one of ours."""
    pick = np.random.default_rng(0)
    path, whole = tmp_path / "model.onnx", network(text).SerializeToString()
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        for place in pick.integers(0, 500, pick.integers(1, 4)):  # names and operators come first
            content[place] = pick.choice([0, 1, 255, content[place] ^ 16])
        path.write_bytes(content)
        try:
            spa_graph.prune(path, params=0.6)
        except spa_graph.SpaError:
            refused += 1
    assert refused > 50


def test_a_weight_that_has_not_as_many_numbers_as_it_says(command: Command, tmp_path: Path) -> None:
    for text in (MLP, BIG):
        model = network(text)
        model.graph.initializer[0].dims[0] += 1
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        assert_refused(command, tmp_path, path, "--flops", 0.5, says="weight `w1`")


def test_a_message_that_is_not_valid() -> None:
    model = network(MLP)
    model.graph.node[0].attribute.add(name="alpha")  # of no type
    with pytest.raises(ModelError, match="not valid ONNX"):
        spa_graph.prune(model, flops=0.5)


@pytest.mark.parametrize(("share", "training", "drops"), [(0.5, True, True), (0.0, True, False),
                                                         (0.5, False, False)])  # fmt: skip
def test_a_network_in_training_mode(share: float, training: bool, drops: bool) -> None:
    """Dropout makes each run another: this is said, and not that the proof failed."""
    model = network(MLP)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    dropout = onnx.helper.make_node("Dropout", ["", "share", "training"], [relu.output[0]])
    relu.output[0] = dropout.input[0] = "before"
    model.graph.node.insert(list(model.graph.node).index(relu) + 1, dropout)
    for name, value in (("share", np.float32(share)), ("training", np.bool_(training))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    if not drops:
        assert spa_graph.prune(model, flops=0.5).report["ratio"]["flops"] <= 0.5
        return
    with pytest.raises(ModelError, match=r"Dropout .* drops features at random.*evaluation mode"):
        spa_graph.prune(model, flops=0.5)


def test_a_missing_file(command: Command, tmp_path: Path) -> None:
    assert_refused(command, tmp_path, tmp_path / "no.onnx", "--flops", 0.5, says="no such file")


def test_a_folder(command: Command, tmp_path: Path) -> None:
    assert_refused(command, tmp_path, tmp_path, "--flops", 0.5, says="it is an empty folder")


def test_a_mistyped_command(command: Command, tmp_path: Path) -> None:
    assert_refused(command, tmp_path, "inspekt", "--flops", 0.5, says="no such file: inspekt")


# --- external data -------------------------------------------------------------------------------


def redirect(path: Path, location: str) -> None:
    """Let every weight of a model point to another data file."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


def test_missing_external_data(command: Command, tmp_path: Path) -> None:
    path = external_model(tmp_path)
    (tmp_path / "weights.bin").unlink()
    assert_refused(
        command, tmp_path, path, "--flops", 0.5, says="weights.bin of weight `w1` is missing"
    )


def test_truncated_external_data(command: Command, tmp_path: Path) -> None:
    path = external_model(tmp_path)
    os.truncate(tmp_path / "weights.bin", 64 * 64 * 4 - 1)
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="weights.bin is truncated")


@pytest.mark.parametrize("form", ["relative", "absolute", "dotted", "symlink", "linked folder"])
def test_external_data_outside_the_models_folder(
    command: Command, tmp_path: Path, form: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external_model(folder)
    secret = tmp_path / "secret" / "weights.bin"
    secret.parent.mkdir()
    (folder / "weights.bin").rename(secret)
    location = {"relative": "../secret/weights.bin", "absolute": str(secret),
                "dotted": "./x/../../secret/weights.bin", "symlink": "link.bin",
                "linked folder": "linked/weights.bin"}[form]  # fmt: skip
    (folder / "link.bin").symlink_to(secret)
    (folder / "linked").symlink_to(secret.parent, target_is_directory=True)
    redirect(path, location)
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="outside the model's folder")


def test_external_data_in_a_subgraph_and_in_a_constant_is_checked_too(
    command: Command, tmp_path: Path
) -> None:
    text = """
    net (float[N,4] x) => (float[N,2] y) <float[4,8] w1, float[8,2] w2> {
        c = Constant<value = float[8] {1, 2, 3, 4, 5, 6, 7, 8}>()
        h = MatMul(x, w1)
        s = Add(h, c)
        y = MatMul(s, w2)
    }
    """
    model = network(text)
    tensor = model.graph.node[0].attribute[0].t
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    path = tmp_path / "model" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(model.SerializeToString())
    (tmp_path / "secret.bin").write_bytes(bytes(32))
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="outside the model's folder")


# --- the network ---------------------------------------------------------------------------------


def test_an_empty_graph(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(network("net (float[4] x) => (float[4] x) { }").SerializeToString())
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="no operators")


def test_no_prunable_channel(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    text = "net (float[N,4] x) => (float[N,3] y) <float[4,3] w> { y = MatMul(x, w) }"
    path.write_bytes(network(text).SerializeToString())
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="no prunable channel: is graph")


def test_a_network_without_weights(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(
        network("net (float[N,4] x) => (float[N,4] y) { y = Relu(x) }").SerializeToString()
    )
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="no prunable channel")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("criterion", ["l1", "l2", "linf", "fpgm", "lamp", "bn-scale", "random"])
def test_weights_that_are_not_numbers(
    command: Command, tmp_path: Path, value: float, criterion: str
) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    weight[2, 5] = value
    path = tmp_path / "model.onnx"
    path.write_bytes(network(MLP, values={"w1": weight}).SerializeToString())
    arguments = (path, "--flops", 0.5, "--criterion", criterion)
    assert_refused(command, tmp_path, *arguments, says="weight `w1` holds NaN or infinity")


def test_an_unknown_operator_is_reported(command: Command, tmp_path: Path) -> None:
    text = """
    net (float[N,4] x) => (float[N,3] y) <float[4,8] w1, float[8,3] w2>
    { h = MatMul(x, w1) s = ai.acme.Secret(h) y = MatMul(s, w2) }
    """
    path = tmp_path / "model.onnx"
    path.write_bytes(network(text, imports=', "ai.acme" : 1').SerializeToString())
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="no rule for ai.acme::Secret")


@pytest.mark.parametrize("where", ["initializer", "constant", "subgraph"])
def test_a_sparse_tensor(command: Command, tmp_path: Path, where: str) -> None:
    text = """
    net (float[N,4] x, bool flag) => (float[N,3] y) <float[4,8] w1, float[8,3] w2> {
        h = MatMul(x, w1)
        y = MatMul(h, w2)
        z = If (flag) <
            then_branch = yes () => (float[N,8] a) { a = Relu(h) },
            else_branch = no () => (float[N,8] b) { b = Neg(h) }
        >
    }
    """
    model = network(text)
    values = onnx.helper.make_tensor("w3", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
    places = onnx.helper.make_tensor("places", onnx.TensorProto.INT64, [2], [0, 5])
    sparse = onnx.helper.make_sparse_tensor(values, places, [8, 3])
    inner = model.graph.node[-1].attribute[0].g
    if where == "constant":
        node = onnx.helper.make_node("Constant", [], ["w3"], sparse_value=sparse)
        model.graph.node.insert(0, node)
    else:
        graph = model.graph if where == "initializer" else inner
        graph.sparse_initializer.append(sparse)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="`w3` is a sparse tensor")


def test_training_information(command: Command, tmp_path: Path) -> None:
    model = network(MLP)
    model.training_info.add().initialization.name = "start"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="the model holds training_info")
