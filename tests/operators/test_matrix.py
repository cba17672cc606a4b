"""The matrix covers every rule: adding an operator means adding a row."""

from __future__ import annotations

from collections import Counter

from spa_graph.coupling.registry import ATEN, registered
from tests.operators import (
    test_attention,
    test_convolution,
    test_elementwise,
    test_fused,
    test_indexing,
    test_integers,
    test_linear,
    test_normalisation,
    test_positional,
    test_positions,
    test_quantisation,
    test_recurrent,
    test_reduction,
    test_shape,
)
from tests.operators.harness import rules_in

FAMILIES = (
    test_attention,
    test_convolution,
    test_elementwise,
    test_fused,
    test_indexing,
    test_integers,
    test_linear,
    test_normalisation,
    test_positional,
    test_positions,
    test_quantisation,
    test_recurrent,
    test_reduction,
    test_shape,
)


def test_every_rule_has_a_row() -> None:
    covered = {rule for family in FAMILIES for entry in family.ROWS for rule in rules_in(entry)}
    onnx = {(domain, op_type) for domain, op_type in registered() if domain != ATEN}
    assert not sorted(onnx - covered)  # tests/torch/test_operators.py has rows for the others


def test_rows_of_a_family_have_names_of_their_own() -> None:
    for family in FAMILIES:
        twice = [name for name, n in Counter(str(entry) for entry in family.ROWS).items() if n > 1]
        assert not twice
