"""Matrix products: Gemm, MatMul, Einsum over transpositions, ranks, batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.operators.harness import Row, check, row


def products(lines: str, weights: str, *, x: str = "N,4", y: str = "N,3") -> str:
    return f"(float[{x}] x) => (float[{y}] y) <{weights}> {{ {lines} }}"


GEMM = [
    row(
        f"gemm, transposed {a}{b}, bias {bias or 'none'}",
        products(
            f"""
            t = Transpose(x)
            h = Gemm<transA={a}, transB={b}, alpha=0.5, beta=2.0>({"xt"[a]}, w {bias and ", b"})
            r = Relu(h)
            y = Gemm<transB={1 - b}>(r, v, c)""",
            f"float[{'8,4' if b else '4,8'}] w, float[{'8,3' if b else '3,8'}] v, float[3] c"
            + (f", float[{bias}] b" if bias else ""),
        ),
        f"w:{1 - b}", f"v:{1 - b}", *((f"b:{bias.count(',')}",) if "8" in bias else ()),
    )
    for a in (0, 1)
    for b in (0, 1)
    for bias in ("", "8", "1,8", "1")
    if not (a and b and bias)
] + [
    row("gemm opset 9", products("h = Gemm(x, w, b) y = Gemm(h, v, c)",
        "float[4,8] w, float[8] b, float[8,3] v, float[3] c"), "w:1", "b:0", "v:0", opset=9),
]  # fmt: skip

MATMUL = [
    row("plain", products("h = MatMul(x, w) y = MatMul(h, v)", "float[4,8] w, float[8,3] v"),
        "w:1", "v:0"),
    row("batched features", products("h = MatMul(x, w) y = MatMul(h, v)",
        "float[4,8] w, float[8,3] v", x="N,5,4", y="N,5,3"), "w:1", "v:0"),
    row("weights on the left", products("h = MatMul(w, x) y = MatMul(v, h)",
        "float[8,4] w, float[3,8] v", x="N,4,5", y="N,3,5"), "w:0", "v:1"),
    row("vector on the right", products("h = MatMul(x, w) y = MatMul(h, v)",
        "float[4,8] w, float[8] v", y="N"), "w:1", "v:0"),
    row("vector on the left", products("h = MatMul(c, w) g = Mul(h, s) k = MatMul(x, u)"
        " a = Mul(k, g) y = MatMul(a, v)",
        "float[5] c, float[5,8] w, float[8] s, float[4,8] u, float[8,3] v"),
        "c:0", "w:0", "w:1", "s:0", "u:1", "v:0"),
    row("a weight per batch entry", products("h = MatMul(x, w) y = MatMul(h, v)",
        "float[2,4,8] w, float[2,8,3] v", x="2,5,4", y="2,5,3"), "w:2", "v:1",
        frozen={"w:0": "is graph"}),
    row("features with features", products(
        "q = MatMul(x, w) k = MatMul(x, u) t = Transpose<perm=[0,2,1]>(k) y = MatMul(q, t)",
        "float[4,8] w, float[4,8] u", x="N,5,4", y="N,5,5"), "w:1", "u:1"),
    row("features with themselves", products(
        "q = MatMul(x, w) t = Transpose<perm=[0,2,1]>(q) y = MatMul(q, t)",
        "float[4,8] w", x="N,5,4", y="N,5,5"), "w:1"),
    row("features that aren't zero", products(
        "q = MatMul(x, w) s = Sigmoid(q) t = Transpose<perm=[0,2,1]>(s) y = MatMul(s, t)",
        "float[4,8] w", x="N,5,4", y="N,5,5"), "w:1", exact=False),
    row("tied weights", products("h = MatMul(x, w) t = Transpose(w) y = MatMul(h, t)",
        "float[4,8] w", y="N,4"), "w:1"),
]  # fmt: skip

HEADS = """
    q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
    split = Constant<value=int64[4] {0, 5, 4, 3}>() join = Constant<value=int64[3] {0, 5, -1}>()
    qs = Reshape(q, split) ks = Reshape(k, split) vs = Reshape(v, split)
"""
QKV = "float[4,12] wq, float[4,12] wk, float[4,12] wv, float[12,3] wo"

# c (8, 8) = h' h is zero in the rows and columns of removed channels, s = sigmoid(c) in none. The
# product s c is zero in removed columns only, c s in removed rows only.
SQUARE = [
    row(name, f"""
        (float[5,4] x) => (float[1,3] y) <float[4,8] w, float[8,3] v, int64[1] none = {{0}}>
        {{
            h = MatMul(x, w) t = Transpose(h) c = MatMul(t, h) s = Sigmoid(c)
            {line}
            n = MatMul(m, v) y = ReduceSum(n, none)
        }}""", "w:1", "v:0", exact=exact)
    for name, line, exact in (
        ("features that aren't zero times a covariance", "m = MatMul(s, c)", False),
        ("a covariance times features that aren't zero", "m = MatMul(c, s)", True),
        ("a covariance squared", "m = MatMul(c, c)", True),
        ("gemm of a covariance", "m = Gemm(s, c)", False),
        ("einsum of a covariance", 'm = Einsum<equation="ab,bc->ac">(s, c)', False),
        ("a gate per row on a covariance that isn't zero", """
            g = ReduceSum<keepdims=1>(c, none) gt = Transpose(g) m = Mul(s, gt)""", True),
        ("a gate per column on a covariance that isn't zero", """
            g = ReduceSum<keepdims=1>(c, none) m = Mul(s, g)""", False),
    )
]  # fmt: skip

EINSUM = [
    row("einsum, matrix product", products(
        'h = Einsum<equation="nk,ko->no">(x, w) y = Einsum<equation="nk,ok->no">(h, v)',
        "float[4,8] w, float[3,8] v"), "w:1", "v:1"),
    row("einsum, implicit output", products(
        'h = Einsum<equation="ab,bc">(x, w) y = Einsum<equation="ab,bc">(h, v)',
        "float[4,8] w, float[8,3] v"), "w:1", "v:0"),
    row("einsum, ellipsis", products(
        'h = Einsum<equation="...k,ko->...o">(x, w) y = Einsum<equation="...k,ko->...o">(h, v)',
        "float[4,8] w, float[8,3] v", x="N,5,4", y="N,5,3"), "w:1", "v:0"),
    row("einsum, sum of features", products(
        'h = Einsum<equation="nk,ko->no">(x, w) y = Einsum<equation="no->n">(h)',
        "float[4,8] w", y="N"), "w:1"),
    row("einsum, outer product", products(
        'h = Einsum<equation="nk,ko->no">(x, w) g = Einsum<equation="no,m->nom">(h, u)'
        ' y = Einsum<equation="nom,om->n">(g, v)',
        "float[4,8] w, float[5] u, float[8,5] v", y="N"), "w:1", "u:0", "v:0", "v:1"),
    row("einsum, diagonal", products(
        'h = Einsum<equation="nk,ko->no">(x, w) y = Einsum<equation="nn->n">(h)',
        "float[4,8] w", x="8,4", y="8"), frozen={"w:1": "takes a diagonal"}),
    row("einsum, attention over heads", products(
        HEADS + 's = Einsum<equation="nqhd,nkhd->nhqk">(qs, ks) p = Softmax(s)'
        ' o = Einsum<equation="nhqk,nkhd->nqhd">(p, vs) a = Reshape(o, join) y = MatMul(a, wo)',
        QKV, x="N,5,4", y="N,5,3"), "wq:1", "wk:1", "wv:1", "wo:0"),
    row("matmul, attention over heads", products(
        HEADS + "qt = Transpose<perm=[0,2,1,3]>(qs) kt = Transpose<perm=[0,2,3,1]>(ks)"
        " vt = Transpose<perm=[0,2,1,3]>(vs) s = MatMul(qt, kt) p = Softmax(s) o = MatMul(p, vt)"
        " ot = Transpose<perm=[0,2,1,3]>(o) a = Reshape(ot, join) y = MatMul(a, wo)",
        QKV, x="N,5,4", y="N,5,3"), "wq:1", "wk:1", "wv:1", "wo:0"),
]  # fmt: skip

ROWS = [*GEMM, *MATMUL, *SQUARE, *EINSUM]


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_row(entry: Row, tmp_path: Path) -> None:
    check(entry, tmp_path)
