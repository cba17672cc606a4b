"""Matrix products: Gemm, MatMul, Einsum.

Every contracted axis is one Dim of both operands. The batch axes of a product of two features
(attention: batch and heads) count independent blocks, and are the ones to prune along.
"""

from __future__ import annotations

from collections.abc import Sequence

from spa_graph.coupling.registry import rule
from spa_graph.coupling.relations import Axes, Axis
from spa_graph.coupling.scope import Scope, Slots
from spa_graph.graph import ONE


@rule("Gemm")
def gemm(scope: Scope) -> None:
    affine(scope, (0, 1, 2), (0, 1))
    if scope.attribute("alpha", 1.0) == scope.attribute("beta", 1.0) == 1.0:
        k = -2 if scope.attribute("transA", 0) else -1
        inputs = 1 if scope.attribute("transB", 0) else 0
        scope.linear("matrix", (0, 1, 2), features=k, inputs=inputs, outputs=1 - inputs, result=-1)


def affine(scope: Scope, slots: tuple[int, int, int], exact_slots: tuple[int, ...]) -> None:
    """Y = alpha A' B' + beta C; A' (m, k), B' (k, n), C broadcasts to (m, n).

    Args:
        slots: where A, B and C stand; the quantised form has them elsewhere.
        exact_slots: the operands whose zeros stand for zero features or weights.
    """
    a, b, out = scope.input(slots[0]), scope.input(slots[1]), scope.output()
    if a is None or b is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    m, k = a[::-1] if scope.attribute("transA", 0) else a
    k2, n = b[::-1] if scope.attribute("transB", 0) else b
    scope.align((k, m, n), (k2, *out))
    scope.contract(k, slots=exact_slots)
    bias = scope.input(slots[2])
    if bias is None:
        scope.zero("any", slots[:2])
    else:
        broadcast(scope, bias, out)
        scope.zero("all", slots[1:])
        scope.role(slots[2], "bias")
    scope.macs(1.0, m, k, n)


@rule("MatMul")
def matmul(scope: Scope) -> None:
    a, b = scope.input(0), scope.input(1)
    multiply(scope, a, b, scope.output())
    if b is not None and len(b) == 2:
        scope.linear("matrix", (0, 1, None), features=-1, inputs=0, outputs=1, result=-1)
    if a is not None and len(a) == 2 and b is not None and len(b) > 1:
        scope.linear("matrix", (1, 0, None), features=-2, inputs=1, outputs=0, result=-2)


def multiply(
    scope: Scope,
    a: Axes | None,
    b: Axes | None,
    out: Axes | None,
    exact_slots: Slots = None,
) -> None:
    """numpy.matmul: (..., m, k) x (..., k, n) -> (..., m, n); vectors lose their axis."""
    if a is None or b is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    k = b[-2] if len(b) > 1 else b[-1]
    scope.same(a[-1], k)
    scope.contract(k, slots=exact_slots)
    rows = [a[-2]] if len(a) > 1 else []
    columns = [b[-1]] if len(b) > 1 else []
    batch = out[: len(out) - len(rows) - len(columns)]
    scope.align(out[len(batch) :], rows + columns)
    broadcast(scope, a[:-2], batch)
    broadcast(scope, b[:-2], batch)
    if len(a) > 2 and len(b) > 2:
        blocks = _blocks(scope, a[-3::-1], b[-3::-1], batch[::-1])
        _prefer_blocks(scope, blocks, (k, *rows, *columns))
    scope.zero("any")
    scope.macs(1.0, *out, k)


def _blocks(scope: Scope, a: Axes, b: Axes, out: Axes) -> list[Axis]:
    """The batch axes of a product along which both operands have matrices.

    Of features one may have a single matrix that all share: the key of a multi-query attention.
    """
    shares = not scope.is_stored(0) and not scope.is_stored(1)
    return [
        o
        for i, j, o in zip(a, b, out, strict=False)
        if scope.extent(o) != ONE and (shares or scope.extent(i) == scope.extent(j))
    ]


def _prefer_blocks(scope: Scope, blocks: Sequence[Axis], inside: Sequence[Axis]) -> None:
    """Both operands have one matrix per block: of attention, or a stored one per expert.

    Args:
        inside: the axes of these matrices.
    """
    stored = any(scope.is_parameter(slot) for slot in range(len(scope.operator.inputs)))
    for axis in blocks:
        scope.prefer(axis, "experts" if stored else "heads")
    if blocks and not stored:
        scope.inside_blocks(blocks, inside)


def broadcast(scope: Scope, axes: Axes, out: Axes) -> None:
    """Tie an operand's axes to those of the result that it is broadcast to, from the right."""
    surplus = len(axes) - len(out)
    if surplus > 0:
        scope.freeze(axes[:surplus], "has no counterpart in the output")
        axes = axes[surplus:]
    out = out[-surplus:] if surplus < 0 else out
    extents = scope.extents(axes)
    if ONE in extents and extents != scope.extents(out):
        pairs = zip(out, axes, extents, strict=True)
        tied = [(o, a) for o, a, size in pairs if size != ONE or scope.extent(o) == ONE]
        out, axes = zip(*tied, strict=True) if tied else ((), ())
    scope.align(out, axes)


@rule("Einsum")
def einsum(scope: Scope) -> None:
    equation = str(scope.attribute("equation", "")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    axes = [scope.input(slot) for slot in range(len(terms))]
    out = scope.output()
    if out is None or any(a is None for a in axes):
        return scope.freeze_all("an operand has no known shape")
    if not arrow:
        right = _implicit_output(left)
    known = [a for a in axes if a is not None]
    if any(len(set(term)) != len(term) for term in (*terms, right) if "..." not in term):
        return scope.freeze_all("takes a diagonal")
    bound: dict[str, Axis] = {}
    for term, own in [(right, out), *zip(terms, known, strict=True)]:
        for letter, axis in zip(_letters(term, len(own)), own, strict=True):
            if scope.extent(axis) == ONE:
                continue  # broadcast
            scope.same(bound.setdefault(letter, axis), axis)
    kept = set(_letters(right, len(out)))
    scope.contract(*(axis for letter, axis in bound.items() if letter not in kept))
    everywhere = set(bound).intersection(
        *(_letters(term, len(own)) for term, own in zip(terms, known, strict=True))
    )
    if len(terms) == 2:  # else experts, say, are summed over with what a router thinks of them
        everywhere &= kept
    if len(terms) > 1:
        blocks = [axis for letter, axis in bound.items() if letter in everywhere]
        inside = [axis for letter, axis in bound.items() if letter not in everywhere]
        _prefer_blocks(scope, blocks, inside)
    if len(terms) == 2:
        operands = [
            dict(zip(_letters(term, len(own)), own, strict=True))
            for term, own in zip(terms, known, strict=True)
        ]
        for slot in (0, 1):
            _matrix_product(scope, operands, slot, _letters(right, len(out)))
    scope.zero("any")
    scope.macs(1.0, *bound.values())


def _matrix_product(
    scope: Scope, operands: Sequence[dict[str, Axis]], slot: int, right: list[str]
) -> None:
    """Say so if an Einsum is the product of features and the matrix in input `slot`."""
    features, weight = operands[1 - slot], operands[slot]
    summed = [letter for letter in weight if letter in features]
    results = [letter for letter in weight if letter in right]
    if not len(weight) == 2 == len({*summed, *results}) or len(summed) > 1 or len(results) > 1:
        return
    (k,), (n,) = summed, results
    around = [letter for letter in features if letter != k]
    if [letter for letter in right if letter != n] != around:
        return  # it sums over more, or moves positions about
    if scope.extent(features[k]) != scope.extent(weight[k]):
        return  # one is broadcast
    scope.linear(
        "matrix",
        (1 - slot, slot, None),
        features=list(features).index(k) - len(features),
        inputs=list(weight).index(k),
        outputs=list(weight).index(n),
        result=right.index(n) - len(right),
    )


def _implicit_output(left: str) -> str:
    """Letters that stand once, in alphabetical order, behind the broadcast axes."""
    letters = left.replace(",", "").replace(".", "")
    once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
    return ("..." if "..." in left else "") + "".join(once)


def _letters(term: str, rank: int) -> list[str]:
    """One name per axis; those under an ellipsis are numbered from the right."""
    before, dots, after = term.partition("...")
    if not dots:
        return list(term)
    hidden = rank - len(before) - len(after)
    return [*before, *(f"...{hidden - 1 - i}" for i in range(hidden)), *after]
