"""The registry of operator rules: (domain, operator type) -> rule. Duplicates raise."""

from __future__ import annotations

from collections.abc import Callable

from spa_graph.coupling.scope import Scope

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


def freezing_reason(domain: str, op_type: str) -> str | None:
    """Why an operator freezes whatever it touches; None if its rule decides."""
    return _FREEZING.get((domain, op_type))


def find_rule(domain: str, op_type: str) -> Rule | None:
    """The rule of an operator, or None: it will be frozen and reported."""
    return _RULES.get((domain, op_type))


def registered() -> list[tuple[str, str]]:
    """Every (domain, operator type) that has a rule."""
    return sorted(_RULES)
