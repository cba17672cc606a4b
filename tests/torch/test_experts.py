"""Modules with routed experts: whole ones leave, whatever way they are looked up or weighed."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import spa_graph.torch as spa  # noqa: E402
from tests.torch.torch_networks import settled  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Experts(nn.Module):
    """Six stacked experts between a router and a head; `best` of them for each row."""

    def __init__(self, order: str, form: str, best: int) -> None:
        super().__init__()
        self.order, self.form, self.best, self.count = order, form, best, 6
        self.router, self.head = nn.Linear(8, 6), nn.Linear(8, 3)
        self.up = nn.Parameter(torch.randn(6, 8, 10))
        self.down = nn.Parameter(torch.randn(6, 10, 8))

    def forward(self, x: Any) -> Any:
        logits = self.router(x)
        shares, which = self._ranked(logits)
        if self.form == "look up":
            hidden = (x[:, None, None] @ self.up[which]).relu()
            said = (hidden @ self.down[which]).squeeze(2)
            return self.head((said * shares[..., None]).sum(1))
        if self.form == "one-hot":
            marks = functional.one_hot(which, self.count).to(x.dtype)
            full = (marks * shares[..., None]).sum(1)
        else:
            full = torch.zeros_like(logits).scatter(1, which, shares)
        hidden = torch.einsum("nd,edf->nef", x, self.up).relu()
        return self.head(torch.einsum("nef,efd,ne->nd", hidden, self.down, full))

    def _ranked(self, logits: Any) -> tuple[Any, Any]:
        if self.order == "argmax":
            return logits.amax(-1, keepdim=True), logits.argmax(-1, keepdim=True)
        if self.order == "softmax last":
            values, which = logits.topk(self.best, dim=-1)
            return values.softmax(-1), which
        shares, which = logits.softmax(-1).topk(self.best, dim=-1)
        return shares / shares.sum(-1, keepdim=True), which


@pytest.mark.parametrize("form", ["look up", "one-hot", "scatter"])
@pytest.mark.parametrize(
    ("order", "best"), [("softmax first", 2), ("softmax last", 2), ("argmax", 1)]
)
def test_whole_experts_leave(order: str, form: str, best: int) -> None:
    """Proven like any other; as many stay as are picked."""
    model, x = settled(Experts(order, form, best)), torch.randn(5, 8)
    for ratio, left in ((0.5, 3), (0.9, best)):
        smaller = spa.prune(model, x, ratio=ratio, scope=("experts",))
        kept = spa.plan_of(smaller).kept
        assert {name: {axis: len(i) for axis, i in own.items()} for name, own in kept.items()} == {
            name: {0: left} for name in ("router.weight", "router.bias", "up", "down")
        }
        assert smaller(torch.randn(7, 8)).shape == (7, 3)


def test_a_sort_keeps_all_experts() -> None:
    class Sorted(Experts):
        def _ranked(self, logits: Any) -> tuple[Any, Any]:
            values, which = logits.sort(dim=-1)
            return values[:, :2].softmax(-1), which[:, :2]

    model = settled(Sorted("", "look up", 2))
    kept = spa.plan_of(spa.prune(model, torch.randn(5, 8), ratio=0.5)).kept
    assert 0 not in kept["up"]
    assert "router.weight" not in kept
