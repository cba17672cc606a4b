"""Chains with other tools: simplifiers, quantisation, the transformer optimiser."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import spa_graph
from benchmarks import recipes
from spa_graph.models_zoo import demo, topologies
from spa_graph.runtime.sessions import open_session, run

ACCURACY = 0.98
"""Of the demo network, whose half counts for nothing: that is how it was trained."""
pytestmark = pytest.mark.filterwarnings("ignore")  # the other tools have warnings of their own


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The other tools log a lot, at levels that mean something else to them."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def network() -> recipes.Network:
    return recipes.demo_network()


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo network at half of its FLOPs."""
    path = tmp_path_factory.mktemp("half") / "half.onnx"
    spa_graph.prune(demo.model_path(), flops=0.5, output=path)
    return path


def tool(name: str) -> None:
    """Skip a test whose tool isn't installed."""
    pytest.importorskip(
        {"dynamic int8": "onnxruntime.quantization", "static int8 (QDQ)": "sympy"}.get(name, name)
    )


def logits(path: Path) -> np.ndarray:
    images, _ = demo.load_heldout()
    return run(open_session(path), {"image": images[:64]})[0]


@pytest.mark.parametrize("name", ["onnxsim", "onnxslim"])
def test_a_simplifier_behind_pruning(
    name: str, network: recipes.Network, half: Path, tmp_path: Path
) -> None:
    tool(name)
    recipes.steps(network)[name](half, tmp_path / "s.onnx")
    np.testing.assert_allclose(logits(tmp_path / "s.onnx"), logits(half), rtol=1e-3, atol=1e-4)
    assert len(onnx.load(tmp_path / "s.onnx").graph.node) < len(onnx.load(half).graph.node)


@pytest.mark.parametrize("name", ["onnxsim", "onnxslim"])
def test_a_simplifier_before_pruning(name: str, network: recipes.Network, tmp_path: Path) -> None:
    tool(name)
    source = tmp_path / "s.onnx"
    recipes.steps(network)[name](demo.model_path(), source)
    result = spa_graph.prune(source, flops=0.5, output=tmp_path / "p.onnx")
    assert 0.4 < result.report["ratio"]["flops"] <= 0.5
    assert not result.report["frozen"]["operators"]
    assert demo.accuracy(tmp_path / "p.onnx") >= ACCURACY - 0.02


@pytest.mark.parametrize("name", ["dynamic int8", "static int8 (QDQ)"])
def test_quantisation_behind_pruning(
    name: str, network: recipes.Network, half: Path, tmp_path: Path
) -> None:
    tool(name)
    step = recipes.steps(network)[name]
    step(half, tmp_path / "q.onnx")
    step(demo.model_path(), tmp_path / "whole.onnx")
    sizes = [path.stat().st_size for path in (tmp_path / "q.onnx", tmp_path / "whole.onnx")]
    assert sizes[0] < 0.75 * sizes[1]
    assert sizes[0] < 0.5 * half.stat().st_size
    assert demo.accuracy(tmp_path / "q.onnx") >= demo.accuracy(half) - 0.01


@pytest.mark.parametrize("name", ["dynamic int8", "static int8 (QDQ)"])
def test_quantisation_before_pruning(name: str, network: recipes.Network, tmp_path: Path) -> None:
    tool(name)
    source = tmp_path / "q.onnx"
    recipes.steps(network)[name](demo.model_path(), source)
    result = spa_graph.prune(source, flops=0.5, output=tmp_path / "p.onnx")
    assert 0.4 < result.report["ratio"]["flops"] <= 0.5
    assert result.report["ratio"]["bytes"] < 0.8
    kinds = [
        {node.op_type for node in onnx.load(path).graph.node}
        for path in (source, tmp_path / "p.onnx")
    ]
    assert kinds[0] == kinds[1]
    assert {"QLinearConv", "ConvInteger", "DequantizeLinear"} & kinds[1]
    assert demo.accuracy(tmp_path / "p.onnx") >= ACCURACY - 0.05


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision transformer with separate queries, keys and values: what the optimiser fuses."""
    path = tmp_path_factory.mktemp("text") / "vit.onnx"
    onnx.save(topologies.vit(fused=False), path)
    return path


def kinds(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_the_transformer_optimiser_behind_pruning(text: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="ONNX Runtime's transformer optimiser imports it")
    spa_graph.prune(text, flops=0.6, output=tmp_path / "p.onnx")
    recipes.optimise(tmp_path / "p.onnx", tmp_path / "o.onnx")
    fused = kinds(tmp_path / "o.onnx")
    assert fused & {
        "SkipLayerNormalization",
        "LayerNormalization",
        "Attention",
        "MultiHeadAttention",
    }
    sizes = {
        i.name: [d.dim_value or 2 for d in i.type.tensor_type.shape.dim]
        for i in onnx.load(text).graph.input
    }
    generator = np.random.default_rng(0)
    feeds = {name: generator.normal(size=shape).astype(np.float32) for name, shape in sizes.items()}
    want, got = (run(open_session(tmp_path / name), feeds)[0] for name in ("p.onnx", "o.onnx"))
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())


def test_the_transformer_optimiser_before_pruning(text: Path, tmp_path: Path) -> None:
    """The proof runs inside `prune`: the fused network without channels is what it should be."""
    pytest.importorskip("torch", reason="ONNX Runtime's transformer optimiser imports it")
    recipes.optimise(text, tmp_path / "o.onnx")
    assert kinds(tmp_path / "o.onnx") != kinds(text)
    result = spa_graph.prune(tmp_path / "o.onnx", flops=0.6, output=tmp_path / "p.onnx")
    assert result.report["ratio"]["flops"] <= 0.6
    assert result.report["verification"]["output_varied"]
    assert kinds(tmp_path / "p.onnx") == kinds(tmp_path / "o.onnx")


def test_the_table(
    network: recipes.Network, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain that fails is a line that says why."""
    monkeypatch.setattr(recipes, "SECONDS", 0.05)
    monkeypatch.setattr(
        recipes, "steps", lambda _: {"copy": lambda _, t: t.write_bytes(half.read_bytes())}
    )
    changed = recipes.Network(
        **{
            **{f: getattr(network, f) for f in network.__dataclass_fields__},
            "recipes": (("copy",), ("gone",)),
        }
    )
    lines = recipes.rows(changed, tmp_path)
    size = half.stat().st_size
    assert lines[0].startswith("| as it is | 1,114 kB (1.00) |")
    assert lines[1].startswith(
        f"| copy | {size / 1e3:,.0f} kB ({size / demo.model_path().stat().st_size:.2f})"
    )
    assert "KeyError" in lines[2]
