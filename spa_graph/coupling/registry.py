"""The registry of operator rules: (domain, operator type) -> rule. Duplicates raise."""

from __future__ import annotations

from collections.abc import Callable

from spa_graph.coupling.scope import Scope
from spa_graph.graph import Operator

Rule = Callable[[Scope], None]
MICROSOFT = "com.microsoft"
ATEN = "aten"
"""PyTorch's operators that have no counterpart in ONNX."""

_RULES: dict[tuple[str, str], Rule] = {}
_FREEZING: dict[tuple[str, str], str] = {}


def rule(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a function as the rule of one or more operator types."""

    def register(function: Rule) -> Rule:
        for op_type in op_types:
            if (domain, op_type) in _RULES:
                raise ValueError(f"two rules for {domain or 'ai.onnx'}::{op_type}")
            _RULES[domain, op_type] = function
        return function

    return register


def freezes(op_types: str, reason: str, domain: str = "") -> None:
    """Register operators that freeze whatever they touch; they need no known shapes."""

    def apply(scope: Scope) -> None:
        scope.freeze_all(reason)

    rule(*op_types.split(), domain=domain)(apply)
    _FREEZING.update(((domain, op_type), reason) for op_type in op_types.split())


def find_rule(operator: Operator) -> tuple[Rule | None, str | None]:
    """An operator's rule, and why it freezes whatever the operator touches, if that is all it does.

    Without a rule the operator will be frozen and reported.
    """
    kind = operator.domain, operator.op_type
    return _RULES.get(kind), _FREEZING.get(kind)


def registered() -> list[tuple[str, str]]:
    """Every (domain, operator type) that has a rule."""
    return sorted(_RULES)
