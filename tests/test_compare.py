"""`spa-prune compare`: what differs between two networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import spa_graph
from spa_graph.errors import ModelError, OptionError
from spa_graph.studies.compare import compare
from tests.conftest import Command, assert_refused
from tests.models import CHAIN, network


@pytest.fixture
def halved(chain: Path) -> Path:
    path = chain.with_name("half.onnx")
    spa_graph.prune(chain, flops=0.5, output=path)
    return path


def test_a_network_does_not_differ_from_itself(chain: Path) -> None:
    found = compare(chain, chain)
    assert found["ratio"] == {"bytes": 1.0, "flops": 1.0, "params": 1.0}
    assert (found["weights"], found["operators"]) == ([], [])
    assert found["outputs"] == [
        {
            "name": "y",
            "largest": 0.0,
            "distortion": 0.0,
            "correlation": pytest.approx(1.0),
            "same_top": 1.0,
        }
    ]


def test_what_pruning_changed(process: Command, chain: Path, halved: Path) -> None:
    ran = process("compare", chain.name, halved.name, "--json", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    data = json.loads(ran.out)
    shapes = {weight.name: list(weight.dims) for weight in onnx.load(halved).graph.initializer}
    before = {"w1": [8, 3, 3, 3], "b1": [8], "w2": [12, 8, 3, 3], "b2": [12], "w3": [12, 5]}
    assert {row["name"]: (row["before"], row["after"]) for row in data["weights"]} == {
        name: (shape, shapes[name]) for name, shape in before.items() if shape != shapes[name]
    }
    assert data["weights"]
    kept = {name: shapes[name][0] for name in ("w1", "w2")}
    flops = [2 * 64 * 9 * 3 * kept["w1"], 2 * 64 * 9 * kept["w1"] * kept["w2"]]
    rows = [row["flops_after"] for row in data["operators"] if row["type"] == "Conv"]
    assert rows == flops
    assert data["ratio"]["flops"] <= 0.5
    assert data["ratio"]["bytes"] == halved.stat().st_size / chain.stat().st_size
    assert data["outputs"][0]["distortion"] > 0
    assert data["data"] == "random input"


def test_outputs_on_given_data(chain: Path, halved: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    found = compare(chain, halved, data=tmp_path / "data.npz")
    assert found["data"] == "data.npz (6 samples)"
    import onnxruntime as ort

    want, got = (
        ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for path in (chain, halved)
    )
    output = found["outputs"][0]
    assert output["largest"] == pytest.approx(np.abs(want - got).max(), rel=1e-4)
    share = np.square(want - got).sum() / np.square(want - want.mean(0)).sum()
    assert output["distortion"] == pytest.approx(share, rel=1e-4)
    assert output["same_top"] == (want.argmax(1) == got.argmax(1)).mean()


def test_networks_that_have_other_weights_or_operators(chain: Path, tmp_path: Path) -> None:
    other = network(CHAIN)
    for weight in other.graph.initializer:
        weight.name += "_"
    for node in other.graph.node:
        names = [name + "_" if name.startswith(("w", "b1", "b2")) else name for name in node.input]
        node.input[:] = names
    onnx.save(other, tmp_path / "renamed.onnx")
    found = compare(chain, tmp_path / "renamed.onnx")
    assert {row["name"] for row in found["weights"] if row["after"] is None} == {
        "w1", "b1", "w2", "b2", "w3",
    }  # fmt: skip
    assert {row["name"] for row in found["weights"] if row["before"] is None} == {
        "w1_", "b1_", "w2_", "b2_", "w3_",
    }  # fmt: skip
    assert found["operators"] == []
    assert found["outputs"][0]["largest"] == 0.0


def test_as_tables(process: Command, chain: Path, halved: Path) -> None:
    ran = process("compare", chain.name, halved.name)
    assert ran.code == 0, ran.err
    for text in ("FLOPs", "file size", "weights that differ", "w2", "12x8x3x3", "of the variance"):
        assert text in ran.out, text


def test_what_compare_refuses(command: Command, chain: Path) -> None:
    folder = chain.parent
    other = network(CHAIN.replace("float[N,5] y", "float[N,5] z").replace("y = ", "z = "))
    onnx.save(other, folder / "other.onnx")
    wider = network(CHAIN.replace("12,5] w3", "12,6] w3").replace("float[N,5] y", "float[N,6] y"))
    onnx.save(wider, folder / "wider.onnx")
    with pytest.raises(OptionError, match=r"gives z, chain\.onnx gives y"):
        compare(chain, folder / "other.onnx")
    with pytest.raises(ModelError, match=r"output `y` has shape \[1, 6\] instead of \[1, 5\]"):
        compare(chain, folder / "wider.onnx")
    assert_refused(command, folder, "compare", chain, folder / "no.onnx", says="no.onnx")
    assert_refused(command, folder, "compare", chain, chain, "--data", "no.npz", says="no.npz")
