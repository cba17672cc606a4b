"""A pruned module equals its ONNX export pruned by the same plan; FLOPs count alike.

The networks of the issue are in the matrix (`-m matrix`), small ones run always.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

import onnx_ir as ir  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

import spa_graph  # noqa: E402
import spa_graph.torch as spa  # noqa: E402
from tests.torch.test_attention import bert, gpt2, tokens, torchvision  # noqa: E402
from tests.torch.torch_networks import Block, Residual, Tied, settled  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
Build = Callable[[], tuple[nn.Module, Any]]


class Recurrent(nn.Module):
    """Embedding, two LSTM layers, mean over time, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 24)
        self.cell = nn.LSTM(24, 32, 2, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.cell(self.embedding(x))[0].mean(1))


class Relative(nn.Module):
    """Attention whose heads are merged with the batch, scores looked up by relative position."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))
        far = (torch.arange(5)[:, None] - torch.arange(5)).abs()
        self.register_buffer("far", far[None].to(torch.int32))

    def heads(self, x: Any) -> Any:
        x = x.view(*x.shape[:2], self.num_heads, -1).permute(0, 2, 1, 3)
        return x.contiguous().view(-1, x.size(2), x.size(3))

    def forward(self, x: Any) -> Any:
        q, k, v = (self.heads(layer(x)) for layer in (self.query, self.key, self.value))
        scores = torch.bmm(q, k.transpose(1, 2)) / 3
        far = self.far.expand(q.size(0), q.size(1), k.size(1))
        scores = scores + scores.gather(-1, far.long())
        y = torch.bmm(scores.softmax(-1), v)
        y = y.view(-1, self.num_heads, y.size(1), y.size(2)).permute(0, 2, 1, 3)
        return self.out(y.reshape(*x.shape[:2], -1))


def features(*shape: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def exported(model: nn.Module, x: Any) -> ir.Model:
    """The module's ONNX export as it is written, with a free batch and the module's own names."""
    free = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(
        model, (x,), dynamo=True, optimize=False, verbose=False, dynamic_shapes=free
    )
    return program.model


def outputs(model: ir.Model, x: Any) -> list[np.ndarray[Any, Any]]:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


def assert_close(got: list[Any], want: list[Any]) -> None:
    assert len(got) == len(want)
    for first, second in zip(got, want, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-4 * np.std(second))


def assert_parity(model: nn.Module, x: Any, *, both: bool, **options: Any) -> Any:
    """`both`: export the pruned module too, rather than run it in torch."""
    pruned = spa.prune(model, x, **options)
    source = exported(model, x)
    result = spa_graph.apply_plan(source, spa.plan_of(pruned))
    report = spa.report_of(pruned)
    for when in ("before", "after"):
        assert result.report[when]["flops"] == report[when]["flops"]
    assert report["ratio"]["flops"] <= options["flops"]
    if both:
        want = outputs(exported(pruned, x), x)
    else:
        with torch.no_grad():
            want = [tensor.numpy() for tensor in pytree.tree_leaves(pruned(x))]
    assert_close(outputs(result.model, x), want)
    return pruned


SMALL: dict[str, Build] = {
    "cnn": lambda: (settled(Residual()), features(2, 3, 8, 8)),
    "transformer": lambda: (settled(Block()), features(2, 5, 32)),
    "tied": lambda: (settled(Tied()), tokens() % 50),
    "relative": lambda: (settled(Relative()), features(2, 5, 32)),
    "lstm": lambda: (settled(Recurrent()), tokens()),
    "bert": lambda: (bert(), tokens()),
    "gpt2": lambda: (gpt2(), tokens()),
}


@pytest.mark.parametrize("name", SMALL)
def test_parity(name: str) -> None:
    model, x = SMALL[name]()
    pruned = assert_parity(model, x, both=True, flops=0.6)
    assert type(pruned) is type(model)


def test_the_same_settings_give_the_same_plan() -> None:
    """Where both frontends see the same groups, scores and choices are the same."""
    model, x = settled(Residual()), features(2, 3, 8, 8)
    model.norm = nn.Identity()  # which the exporter takes apart
    ours = spa.plan_of(spa.prune(model, x, flops=0.5)).to_json()["kept"]
    theirs = spa_graph.prune(exported(model, x), flops=0.5).plan.to_json()["kept"]
    assert ours == theirs


def _torchvision(name: str) -> Build:
    def build() -> tuple[nn.Module, Any]:
        models = torchvision().models
        return settled(getattr(models, name)(weights=None)), features(2, 3, 224, 224)

    return build


LARGE = {
    "resnet18": True, "mobilenet_v3_small": True, "shufflenet_v2_x1_0": True,
    "convnext_tiny": True, "vit_b_16": True, "swin_t": False,
}  # fmt: skip
"""With whether the result is a module of the same class; Swin's forward fixes its heads' sizes."""


@pytest.mark.matrix
@pytest.mark.parametrize("name", LARGE)
def test_large_parity(name: str) -> None:
    model, x = _torchvision(name)()
    pruned = assert_parity(model, x, both=False, flops=0.5)
    assert (type(pruned) is type(model)) == LARGE[name]
