"""Random networks at random budgets: what pruning claims is true, and names don't matter.

`HYPOTHESIS_PROFILE=explore pytest tests/test_random_graphs.py` looks at many more.
"""

from __future__ import annotations

import os

import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

import spa_graph
from spa_graph.plan import Plan
from tests.models import (
    assert_plan_describes,
    assert_same_outputs,
    changed_by,
    groups_of,
    random_feeds,
    zero,
)
from tests.random_graphs import IMAGE_STEPS, image_network
from tests.random_sequences import SEQUENCE_STEPS, sequence_network

EXPLORE = os.environ.get("HYPOTHESIS_PROFILE") == "explore"
many = settings(
    max_examples=int(os.environ.get("EXAMPLES", 2000)) if EXPLORE else 60,
    derandomize=not EXPLORE,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

numbers = st.integers(0, 2**16)
batches = st.sampled_from([2, "batch"])


def steps(table: dict[str, object]) -> st.SearchStrategy[list[tuple[str, int]]]:
    return st.lists(st.tuples(st.sampled_from(sorted(table)), numbers), min_size=2, max_size=10)


images = st.builds(
    image_network, steps(IMAGE_STEPS), st.sampled_from(["pool", "flatten", "conv"]), batches
)
sequences = st.builds(sequence_network, steps(SEQUENCE_STEPS), batches)
networks = st.one_of(images, sequences)
shares = st.floats(0, 1, exclude_max=True)


def pruned(
    model: onnx.ModelProto, share: float, *, exact: bool, criterion: str = "l1"
) -> spa_graph.Result | None:
    """Prune to somewhere between the smallest network and the whole; None if nothing can go."""
    try:
        spa_graph.prune(model, params=1e-9, round_to=1, exact=exact, verify=False)
    except spa_graph.BudgetError as error:
        smallest = float(str(error).split("smallest possible is ")[1].split()[0])
    except spa_graph.ModelError as error:
        assert any(text in str(error) for text in ("no prunable channel", "no channel can be"))
        return None
    budget = smallest + (1 - smallest) * share
    if budget >= 1:
        return None
    return spa_graph.prune(model, params=budget, round_to=1, exact=exact, criterion=criterion)


@many
@given(networks, shares)
def test_sliced_equals_masked(model: onnx.ModelProto, share: float) -> None:
    """`prune` itself compares the result with the masked network; and the plan is complete."""
    result = pruned(model, share, exact=False, criterion="random")
    if result is not None:
        onnx.checker.check_model(result.model, full_check=True)
        assert_plan_describes(result.plan, model, result.model)


@many
@given(networks, shares)
def test_exact_pruning_equals_zeroing(model: onnx.ModelProto, share: float) -> None:
    """An oracle that knows nothing of the analysis: the original, weights set to zero."""
    result = pruned(model, share, exact=True, criterion="random")
    if result is not None:
        masked = changed_by(model, result.plan, zero)
        assert_same_outputs(result.model, masked, random_feeds(model), rtol=1e-3, atol=1e-4)


@many
@given(networks)
def test_keeping_all_changes_nothing(model: onnx.ModelProto) -> None:
    result = spa_graph.apply_plan(model, Plan({}))
    assert_same_outputs(result.model, model, random_feeds(model), rtol=0, atol=0)
    assert result.report["ratio"]["params"] == 1


@many
@given(networks, numbers)
def test_names_and_the_order_of_operands_do_not_matter(model: onnx.ModelProto, seed: int) -> None:
    want = groups_of(spa_graph.analyze(model))
    renamed, names = disguised(model, np.random.default_rng(seed))
    got = groups_of(spa_graph.analyze(renamed))
    assert got == {frozenset((names[name], axis) for name, axis in group) for group in want}


def disguised(
    model: onnx.ModelProto, pick: np.random.Generator
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The same network: other names, commutative operands swapped; old name -> new name."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    graph = copy.graph
    values = [t.name for t in graph.initializer] + [v.name for v in graph.input]
    values += [name for node in graph.node for name in node.output]
    order = pick.permutation(len(values))
    names = {old: f"value{number}" for old, number in zip(values, order, strict=True)}
    for item in [*graph.initializer, *graph.input, *graph.output, *graph.value_info]:
        item.name = names[item.name]
    for number, node in enumerate(graph.node):
        node.name = f"node{pick.integers(10**6)}.{number}"
        if node.op_type in ("Add", "Mul", "Max") and pick.integers(2):
            node.input.reverse()
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    return copy, names


@pytest.mark.parametrize("name", sorted(IMAGE_STEPS))
def test_every_image_step_makes_a_network(name: str) -> None:
    model = image_network([("conv", 3), (name, 0), (name, 5)], "pool")
    assert spa_graph.analyze(model).groups


@pytest.mark.parametrize("name", sorted(SEQUENCE_STEPS))
def test_every_sequence_step_makes_a_network(name: str) -> None:
    model = sequence_network([("linear", 3), (name, 0), (name, 5)])
    assert spa_graph.analyze(model).groups
