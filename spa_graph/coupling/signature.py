"""Rules as axis signatures, in the notation that readers of einsum know.

    signature("BatchNormalization", "n c *, c, c, c, c -> n c *")

One term per input, then `->`, then one term per output. In a term, a letter names a Dim (the same
letter, the same Dim), `*` stands for the remaining axes, which pass through in order, `_` for one
axis that the operator fixes, and `_*` for remaining axes that it fixes. Absent optional operands
are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from spa_graph.coupling.registry import Rule, rule
from spa_graph.coupling.relations import Axis
from spa_graph.coupling.scope import Role, Scope, ZeroMode

_REST = ("*", "_*")


@dataclass(frozen=True, slots=True)
class Signature:
    """A parsed signature: for each operand the tokens of its axes."""

    inputs: tuple[tuple[str, ...], ...]
    outputs: tuple[tuple[str, ...], ...]


def parse(text: str) -> Signature:
    """Parse a signature; a mistake raises at import, not when a network is analysed.

    >>> parse("n c *, c -> n c *").inputs
    (('n', 'c', '*'), ('c',))
    """
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"no `->` in signature {text!r}")
    signature = Signature(_terms(left, text), _terms(right, text))
    letters = {token for term in signature.inputs for token in term}
    for term in signature.outputs:
        if not set(term) - {"_", *_REST} <= letters:
            raise ValueError(f"an output of {text!r} names an axis that no input has")
    return signature


def _terms(side: str, text: str) -> tuple[tuple[str, ...], ...]:
    terms = tuple(tuple(term.split()) for term in side.split(","))
    for token in (token for term in terms for token in term):
        if not (token in ("_", *_REST) or (len(token) == 1 and token.isalpha())):
            raise ValueError(f"bad token {token!r} in signature {text!r}")
    return terms


def apply(scope: Scope, signature: Signature) -> dict[str, Axis]:
    """State the signature's relations; returns an axis for each letter (and `*0`, `*1`, ...)."""
    bound: dict[str, Axis] = {}
    inputs = [(scope.input(i), term) for i, term in enumerate(signature.inputs)]
    outputs = [(scope.output(i), term) for i, term in enumerate(signature.outputs)]
    for axes, term in inputs + outputs:
        if axes is None:
            continue
        tokens = _spread(term, len(axes))
        if tokens is None:
            scope.freeze_all(f"an operand of rank {len(axes)} does not fit `{' '.join(term)}`")
            return bound
        named = list(zip(axes, tokens, strict=True))
        scope.freeze([axis for axis, token in named if token == "_"], "works along this axis")
        passed = [(axis, token) for axis, token in named if token != "_"]
        scope.align([bound.setdefault(t, axis) for axis, t in passed], [a for a, _ in passed])
    return bound


@cache
def _spread(term: tuple[str, ...], rank: int) -> list[str] | None:
    """One token per axis; `*` becomes *0, *1, ... counted from the right."""
    at = next((i for i, token in enumerate(term) if token in _REST), None)
    if at is None:
        return list(term) if len(term) == rank else None
    missing = rank - len(term) + 1
    if missing < 0:
        return None
    if term[at] == "_*":
        middle = ["_"] * missing
    else:
        middle = [f"*{missing - 1 - i}" for i in range(missing)]
    return [*term[:at], *middle, *term[at + 1 :]]


def signature(
    op_types: str,
    text: str,
    *,
    domain: str = "",
    zero: ZeroMode = "all",
    slots: tuple[int, ...] | None = None,
    contract: str = "",
    renormalise: str = "",
    roles: dict[int, Role] | None = None,
) -> Rule:
    """Register a rule that is nothing but a signature (and what it does to zeroed channels)."""
    parsed = parse(text)

    def apply_signature(scope: Scope) -> None:
        bound = apply(scope, parsed)
        scope.zero(zero, slots)
        scope.contract(*(bound[letter] for letter in contract if letter in bound))
        scope.renormalise(*(bound[letter] for letter in renormalise if letter in bound))
        for slot, role in (roles or {}).items():
            scope.role(slot, role)

    return rule(*op_types.split(), domain=domain)(apply_signature)
