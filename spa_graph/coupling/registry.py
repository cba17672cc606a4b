"""The registry of operator rules: (domain, operator type) -> rule. Duplicates raise."""

from __future__ import annotations

from collections.abc import Callable

from spa_graph.coupling.scope import Scope

Rule = Callable[[Scope], None]
MICROSOFT = "com.microsoft"

_RULES: dict[tuple[str, str], Rule] = {}


def rule(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a function as the rule of one or more operator types."""

    def register(function: Rule) -> Rule:
        for op_type in op_types:
            if (domain, op_type) in _RULES:
                raise ValueError(f"two rules for {domain or 'ai.onnx'}::{op_type}")
            _RULES[domain, op_type] = function
        return function

    return register


def find_rule(domain: str, op_type: str) -> Rule | None:
    """The rule of an operator, or None: it will be frozen and reported."""
    return _RULES.get((domain, op_type))


def registered() -> list[tuple[str, str]]:
    """Every (domain, operator type) that has a rule."""
    return sorted(_RULES)
