"""The plan: complete, readable, replayable, and written by hand if need be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import spa_graph
from spa_graph import OptionError, Plan
from tests.models import (
    CHAIN,
    MLP,
    RESIDUAL,
    assert_plan_describes,
    assert_pruned,
    assert_same_outputs,
    changed_by,
    network,
    random_feeds,
    shapes,
    stored,
    zero,
)

MERGED = """
merged (float[N,3,8,8] x) => (float[N,4] y)
<float[8,3,3,3] w1, float[8,8,3,3] w2, float[8,4] w3, float[8] one, float[8] zero> {
    a = Conv(x, w1)
    na = BatchNormalization(a, one, zero, zero, one)
    ra = Relu(na)
    b = Conv(ra, w2)
    nb = BatchNormalization(b, one, zero, zero, one)
    p = GlobalAveragePool(nb)
    f = Flatten(p)
    y = MatMul(f, w3)
}
"""
"""Two layers of 8 channels whose fresh normalisations an exporter merged."""
MERGED_VALUES = {"one": np.ones(8, np.float32), "zero": np.zeros(8, np.float32)}

CONSTANTS = """
constants (float[N,2] x) => (float[N,2] y) <float[2,3] w1> {
    b = Constant<value = float[3] {1, 2, 3}>()
    w2 = Constant<value = float[2,3] {1, 2, 3, 4, 5, 6}>()
    h = MatMul(x, w1)
    s = Add(h, b)
    t = Transpose<perm = [1, 0]>(w2)
    y = MatMul(s, t)
}
"""
"""Weights as Constant nodes, one of them transposed before its use."""

NETWORKS = {
    "chain": network(CHAIN),
    "residual": network(RESIDUAL),
    "mlp": network(MLP),
    "merged": network(MERGED, values=MERGED_VALUES),
    "constants": network(CONSTANTS),
}
every_network = pytest.mark.parametrize("model", NETWORKS.values(), ids=NETWORKS.keys())


def same_bytes(first: onnx.ModelProto, second: onnx.ModelProto) -> bool:
    return first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )


@every_network
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.7])
def test_the_plan_is_complete(model: onnx.ModelProto, ratio: float) -> None:
    result = spa_graph.prune(model, ratio=ratio, round_to=1)
    assert_plan_describes(result.plan, model, result.model)
    for name, kept in result.plan.kept.items():
        sizes = [len(kept[axis]) if axis in kept else size
                 for axis, size in enumerate(stored(model)[name].shape)]  # fmt: skip
        assert shapes(result.model)[name] == tuple(sizes)
        assert all(len(index) < stored(model)[name].shape[axis] for axis, index in kept.items())
    untouched = shapes(model).keys() - result.plan.kept.keys() - result.plan.kept_per_use.keys()
    assert all(shapes(result.model)[name] == shapes(model)[name] for name in untouched)


@every_network
def test_a_plan_goes_through_json(model: onnx.ModelProto, tmp_path: Path) -> None:
    made = spa_graph.prune(model, ratio=0.5, round_to=1)
    made.plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded.to_json() == made.plan.to_json() == json.loads(json.dumps(made.plan.to_json()))
    replayed = spa_graph.apply_plan(model, loaded)
    assert same_bytes(replayed.model, made.model)
    assert replayed.plan.to_json() == made.plan.to_json()
    assert replayed.report["after"] == made.report["after"]


@every_network
def test_a_plan_that_keeps_all_changes_nothing(model: onnx.ModelProto) -> None:
    result = spa_graph.apply_plan(model, Plan({}))
    assert stored(result.model).keys() == stored(model).keys()
    assert all(np.array_equal(stored(result.model)[k], v) for k, v in stored(model).items())
    assert_same_outputs(result.model, model, random_feeds(model), rtol=0, atol=0)
    assert result.plan.kept == {}
    assert result.report["ratio"] == {"flops": 1, "params": 1, "channels": 1}


def test_the_format() -> None:
    data = spa_graph.prune(network(MLP), ratio=0.75, round_to=1).plan.to_json()
    kept = data["kept"]["b1"]["0"]
    assert len(kept) == 4
    assert data == {
        "format": "spa-plan/1",
        "model": {
            "name": "mlp",
            "operators": 3,
            "parameters": 3,
            "shapes": {"w1": [4, 16], "b1": [16], "w2": [16, 3]},
            "attention": "heads",
            "groups": "groups",
        },
        "kept": {"w1": {"1": kept}, "b1": {"0": kept}, "w2": {"0": kept}},
    }


def test_a_plan_written_by_hand() -> None:
    plan = Plan.from_json(
        {
            "format": "spa-plan/1",
            "kept": {"w1": {"1": [0, 7]}, "b1": {"0": [0, 7]}, "w2": {"0": [0, 7]}},
        }
    )
    model = network(MLP)
    result = spa_graph.apply_plan(model, plan)
    after = stored(result.model)
    np.testing.assert_array_equal(after["w1"], stored(model)["w1"][:, [0, 7]])
    np.testing.assert_array_equal(after["b1"], stored(model)["b1"][[0, 7]])
    np.testing.assert_array_equal(after["w2"], stored(model)["w2"][[0, 7]])
    assert_same_outputs(result.model, changed_by(model, plan, zero), random_feeds(model))


# --- merged initializers -------------------------------------------------------------------------


def test_merged_weights_are_copied_where_their_uses_differ() -> None:
    model = NETWORKS["merged"]
    result = spa_graph.prune(model, ratio=0.5, round_to=1, exclude=("w3",))
    assert set(result.plan.kept) == {"w1", "w2"}
    assert set(result.plan.kept_per_use) == {"one", "zero"}
    first = result.plan.kept["w1"][0].tolist()
    for uses in result.plan.to_json()["kept_per_use"].values():
        assert [use["kept"] for use in uses] == [{"0": first}, {"0": first}, {}, {}]
    sizes = sorted(shape for name, shape in shapes(result.model).items() if len(shape) == 1)
    assert sizes == [(4,), (4,), (8,), (8,)]
    assert_plan_describes(result.plan, model, result.model)


def test_one_plan_for_merged_weights_that_stay_equal() -> None:
    """Both layers keep the same positions: the vectors stay shared."""
    model = NETWORKS["merged"]
    kept = [0, 3, 5]
    weights = {"w1": {"0": kept}, "w2": {"0": kept, "1": kept}, "w3": {"0": kept}}
    shared = {"one": {"0": kept}, "zero": {"0": kept}}
    data: dict[str, Any] = {"format": "spa-plan/1", "kept": weights | shared}
    result = spa_graph.apply_plan(model, Plan.from_json(data))
    assert shapes(result.model).keys() == shapes(model).keys()
    assert shapes(result.model)["one"] == shapes(result.model)["zero"] == (3,)
    assert_same_outputs(
        result.model, changed_by(model, result.plan, zero), random_feeds(model, dynamic=3)
    )


def test_a_plan_per_use_for_merged_weights() -> None:
    model = NETWORKS["merged"]
    first, second = [0, 3, 5], [1, 2, 3, 4]

    def uses(*slots: int) -> list[dict[str, Any]]:
        return [
            {"node": node, "input": slot, "kept": {"0": kept}}
            for node, kept in (("na", first), ("nb", second))
            for slot in slots
        ]

    data = {
        "format": "spa-plan/1",
        "kept": {"w1": {"0": first}, "w2": {"0": second, "1": first}, "w3": {"0": second}},
        "kept_per_use": {"one": uses(1, 4), "zero": uses(2, 3)},
    }
    result = spa_graph.apply_plan(model, Plan.from_json(data))
    assert_plan_describes(result.plan, model, result.model)
    written = result.plan.to_json()
    assert written["kept"] == data["kept"]
    for name in ("one", "zero"):
        per_use = data["kept_per_use"][name]
        order = sorted(written["kept_per_use"][name], key=lambda use: (use["node"], use["input"]))
        assert order == per_use
    assert_same_outputs(
        result.model, changed_by(model, result.plan, zero), random_feeds(model, dynamic=3)
    )


@pytest.mark.parametrize("missing", ["na", "nb"])
def test_a_plan_that_forgets_a_use(missing: str) -> None:
    model = NETWORKS["merged"]
    data = spa_graph.prune(model, flops=0.4, round_to=1, criterion="random").plan.to_json()
    assert set(data["kept_per_use"]) == {"one", "zero"}
    uses = data["kept_per_use"]["one"]
    data["kept_per_use"]["one"] = [use for use in uses if use["node"] != missing]
    with pytest.raises(OptionError, match="breaks a coupling: weight `one`"):
        spa_graph.apply_plan(model, Plan.from_json(data))


# --- another export of the same network ----------------------------------------------------------


def test_a_plan_fits_another_export() -> None:
    """Other node and value names, another opset, shape data in between: the weights decide."""
    plan = spa_graph.prune(network(CHAIN), flops=0.5).plan
    text = """
    other (float[1,3,8,8] image) => (float[1,5] logits)
    <float[8,3,3,3] w1, float[8] b1, float[12,8,3,3] w2, float[12] b2, float[12,5] w3> {
        c1 = Conv<pads=[1,1,1,1]>(image, w1, b1)
        r1 = Relu(c1)
        c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)
        r2 = Relu(c2)
        size = Constant<value_ints = [1, 12]>()
        axes = Constant<value_ints = [2, 3]>()
        mean = ReduceMean<keepdims=0>(r2, axes)
        flat = Reshape(mean, size)
        logits = MatMul(flat, w3)
    }
    """
    other = network(text, opset=21, seed=9)
    result = spa_graph.apply_plan(other, plan)
    assert_plan_describes(plan, other, result.model)
    assert_same_outputs(result.model, changed_by(other, plan, zero), random_feeds(other))


def test_a_table_that_layers_only_compute_with_does_not_tie_them() -> None:
    """Rotary frequencies and position biases are computed once for all layers."""
    model = network(
        """
        table (float[N,4] x) => (float[N,3,4] y)
        <float[4,24] w1, float[4,24] w2, float[3,8] table, float[8,4] v1, float[8,4] v2,
         int64[3] split = {-1,3,8}>
        {
            a = MatMul(x, w1)
            b = Reshape(a, split)
            c = Mul(b, table)
            d = MatMul(c, v1)
            e = MatMul(x, w2)
            f = Reshape(e, split)
            g = Mul(f, table)
            h = MatMul(g, v2)
            y = Add(d, h)
        }"""
    )
    assert len(spa_graph.analyze(model).groups) == 2
    result = spa_graph.prune(model, ratio=0.5, criterion="random")
    assert set(result.plan.kept_per_use) == {"table"}
    assert_pruned(model, result)
