"""A row per ATen operator: a layer, the operator, a layer. What is pruned is proven on every run.

`free` says how many of the 8 channels between the layers must be removable at a ratio of 0.5: 4 if
the operator lets channels go one by one, None if it must keep them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import spa_graph.torch as spa  # noqa: E402
from spa_graph.coupling.registry import ATEN, registered  # noqa: E402
from spa_graph.errors import ModelError  # noqa: E402
from tests.torch.torch_networks import settled  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class Around(nn.Module):
    """Image (2, 3, 4, 4) -> 8 channels -> the operator -> sums over everything -> 2 outputs."""

    def __init__(self, between: Any, out: int) -> None:
        super().__init__()
        self.first, self.between = nn.Conv2d(3, 8, 1), between
        self.last = nn.Conv2d(out, 2, 1)

    def forward(self, x: Any) -> Any:
        y = self.between(self.first(x))
        return self.last(y.reshape(*y.shape[:2], -1, 1))


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Any) -> Any:
        own = [module for name, module in self.named_children()]
        return self.function(x, *own)


f = Call
ELEMENTWISE: dict[str, Callable[[Any], Any]] = {
    name: getattr(torch, name)
    for name in ("abs", "cos", "erf", "exp", "neg", "relu", "sigmoid", "sin", "square", "tanh")
}
ELEMENTWISE |= {
    "add_scalar": lambda x: x + 1.5,
    "rsub": lambda x: 1 - x,
    "div_scalar": lambda x: x / 3,
    "div": lambda x: x / (x.abs() + 1),
    "reciprocal": lambda x: 1 / (x.abs() + 1),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 1),
    "log": lambda x: torch.log(x.abs() + 1),
    "log1p": lambda x: torch.log1p(x.abs()),
    "pow": lambda x: x**2,
    "pow_negative": lambda x: (x.abs() + 1) ** -0.5,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp_away": lambda x: x.clamp(min=0.5),
    "relu6": functional.relu6,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "elu": functional.elu,
    "mish": functional.mish,
    "softplus": functional.softplus,
    "logsigmoid": functional.logsigmoid,
    "leaky_relu": functional.leaky_relu,
    "hardsigmoid": functional.hardsigmoid,
    "hardtanh": functional.hardtanh,
    "maximum": lambda x: torch.maximum(x, x.flip(-1)),
    "where": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "where_ones": lambda x: torch.where(x > 0, x, torch.ones_like(x)),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.25),
    "lerp": lambda x: torch.lerp(x, x * 2, 0.5),
    "addcmul": lambda x: torch.addcmul(x, x, x),
    "half": lambda x: x.to(torch.float64).to(torch.float32),
    "dropout": lambda x: functional.dropout(x, 0.5, training=False),
    "inplace": lambda x: x.mul(2).add_(1).relu_(),
}
ROWS: list[tuple[str, nn.Module, int, int | None]] = [
    *((name, f(function), 8, 4) for name, function in ELEMENTWISE.items()),
    ("conv", nn.Conv2d(8, 6, 3, padding=1), 6, 4),
    ("conv_groups", nn.Conv2d(8, 8, 3, padding=1, groups=4), 8, 4),
    ("conv_depthwise", nn.Conv2d(8, 16, 3, padding="same", groups=8), 16, 4),
    ("conv_transpose", nn.ConvTranspose2d(8, 6, 2, 2), 6, 4),
    ("conv_transpose_groups", nn.ConvTranspose2d(8, 4, 2, 2, groups=2), 4, 4),
    ("conv1d", f(lambda x, c: c(x.flatten(2)), c=nn.Conv1d(8, 6, 3, padding=1)), 6, 4),
    ("batch_norm", nn.BatchNorm2d(8), 8, 4),
    ("instance_norm", nn.InstanceNorm2d(8), 8, 4),
    ("instance_norm_affine", nn.InstanceNorm2d(8, affine=True), 8, 4),
    ("group_norm", nn.GroupNorm(4, 8), 8, 4),
    ("layer_norm_space", nn.LayerNorm((4, 4)), 8, 4),
    ("layer_norm", f(lambda x, n: n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
                     n=nn.LayerNorm(8)), 8, 4),
    ("layer_norm_plain", f(lambda x, n: n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
                           n=nn.LayerNorm(8, elementwise_affine=False)), 8, 4),
    ("rms_norm", f(lambda x, n: n(x.movedim(1, -1)).movedim(-1, 1), n=nn.RMSNorm(8)), 8, 4),
    ("prelu", nn.PReLU(8), 8, 4),
    ("prelu_single", nn.PReLU(), 8, 4),
    ("max_pool", nn.MaxPool2d(2), 8, 4),
    ("avg_pool", nn.AvgPool2d(2), 8, 4),
    ("adaptive", nn.AdaptiveAvgPool2d(1), 8, 4),
    ("adaptive_max", nn.AdaptiveMaxPool2d(2), 8, 4),
    ("upsample", nn.Upsample(scale_factor=2), 8, 4),
    ("upsample_bilinear", nn.Upsample(scale_factor=2, mode="bilinear"), 8, 4),
    ("pixel_shuffle", nn.PixelShuffle(2), 2, 4),
    ("linear", f(lambda x, n: n(x.movedim(1, -1)).movedim(-1, 1), n=nn.Linear(8, 6)), 6, 4),
    ("glu", f(lambda x: functional.glu(x, 1)), 4, 4),
    ("matmul", f(lambda x: (x.flatten(2) @ x.flatten(2).mT).sum(-1)), 8, 4),
    ("bmm", f(lambda x: torch.bmm(x.flatten(2), x.flatten(2).mT).sum(-1)), 8, 4),
    ("einsum", f(lambda x: torch.einsum("nchw,nchv->ncwv", x, x)), 8, 4),
    ("softmax_space", f(lambda x: x.softmax(-1)), 8, 4),
    ("softmax_channels", f(lambda x: x.softmax(1)), 8, None),
    ("mean", f(lambda x: x.mean((2, 3), keepdim=True)), 8, 4),
    ("mean_channels", f(lambda x: x * x.mean(1, keepdim=True)), 8, 4),
    ("sum_channels", f(lambda x: x * x.sum(1, keepdim=True)), 8, 4),
    ("amax", f(lambda x: x.amax((2, 3))), 8, 4),
    ("var", f(lambda x: x.var(-1, keepdim=True)), 8, 4),
    ("norm", f(lambda x: functional.normalize(x, dim=1)), 8, 4),
    ("cumsum", f(lambda x: x.cumsum(-1)), 8, 4),
    ("cat", f(lambda x: torch.cat((x, x * 2), 1)), 16, 4),
    ("stack", f(lambda x: torch.stack((x, x * 2), 2).flatten(1, 2)), 16, 4),
    ("chunk", f(lambda x: (lambda a, b: a * b)(*x.chunk(2, 1))), 4, 4),
    ("split_sizes", f(lambda x: torch.cat(x.split([2, 6], 1)[::-1], 1)), 8, 4),
    ("unbind", f(lambda x: sum(x.unbind(-1))), 8, 4),
    ("unbind_channels", f(lambda x: torch.stack(x.unbind(1), 1)), 8, None),
    ("slice", f(lambda x: x[:, 2:]), 6, 4),
    ("slice_strided", f(lambda x: x[:, ::2]), 4, 2),
    ("narrow", f(lambda x: x.narrow(1, 0, 4) * x.narrow(1, 4, 4)), 4, 4),
    ("select", f(lambda x: x[..., 0]), 8, 4),
    ("index", f(lambda x: x[:, torch.tensor([7, 0, 1, 2, 3, 4, 5, 6])]), 8, 4),
    ("index_select", f(lambda x: x.index_select(1, torch.tensor([3, 1, 0, 2]))), 4, 2),
    ("gather", f(lambda x: x.gather(-1, x.argsort(-1))), 8, 4),
    ("topk", f(lambda x: x.topk(2, -1).values), 8, 4),
    ("argmax", f(lambda x: x * x.argmax(-1, keepdim=True)), 8, 4),
    ("pad", f(lambda x: functional.pad(x, (1, 1))), 8, 4),
    ("pad_channels", f(lambda x: functional.pad(x, (0, 0, 0, 0, 1, 1))), 10, 4),
    ("pad_reflect", f(lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect")), 8, 4),
    ("roll", f(lambda x: x.roll((1, 1), (2, 3))), 8, 4),
    ("roll_channels", f(lambda x: x.roll(1, 1)), 8, None),
    ("expand", f(lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 2, 2)), 8, 4),
    ("expand_sizes", f(lambda x: x.mean((2, 3), keepdim=True).expand(len(x), 8, 2, 2)), 8, 4),
    ("repeat", f(lambda x: x.repeat(1, 2, 1, 1)), 16, 4),
    ("zeros", f(lambda x: torch.cat((x, torch.zeros(len(x), 8, 4, 4)), 1)), 16, 4),
    ("new_ones", f(lambda x: x + x.new_ones(8, 1, 1)), 8, 4),
    ("unflatten", f(lambda x: x.unflatten(1, (2, 4)).sum(1)), 4, 4),
    ("view_inferred", f(lambda x: x.view(len(x), -1, 16)), 8, 4),
    ("squeeze", f(lambda x: x[..., :1].squeeze(-1).unsqueeze(-1)), 8, 4),
    ("repeat_interleave", f(lambda x: x.repeat_interleave(2, 1)), 16, 4),
    ("extremum", f(lambda x: x.max(-1)[0]), 8, 4),
    ("extremum_channels", f(lambda x: x * x.min(1, keepdim=True)[0]), 8, None),
    ("baddbmm", f(lambda x: torch.baddbmm(x[:, 0], x[..., 0].mT, x[..., 1])[:, None] * x[:, :, :1]
                  .amax((2, 3), keepdim=True)), 8, 3),
    ("logical", f(lambda x: x * ((x > 0) & (x < 1))), 8, 4),
    ("tril", f(lambda x: x.tril()), 8, 4),
    ("slice_scatter", f(lambda x: x.slice_scatter(x[..., :2] * 2, 3, 1, 3)), 8, 4),
    ("shuffle", f(lambda x: x.view(-1, 2, 4, 4, 4).transpose(1, 2).reshape(-1, 8, 4, 4)), 8, 4),
    ("sdpa", f(lambda x: functional.scaled_dot_product_attention(*[x] * 3)), 8, 4),
    ("unknown", f(lambda x: torch.special.bessel_j0(x)), 8, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "between", "out", "free"), ROWS, ids=[row[0] for row in ROWS])
def test_operator(name: str, between: nn.Module, out: int, free: int | None) -> None:
    model = settled(Around(between, out))
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    if free is None:
        analysis = spa.analyze(model, x)
        kept = {m.parameter for group in analysis.groups for m in group.members if m.axis == 0}
        assert "first.weight" not in kept, name
        with pytest.raises(ModelError, match="no prunable channel"):
            spa.prune(model, x, ratio=0.5)
        return
    pruned = spa.prune(model, x, ratio=0.5, return_type="graph")
    assert len(pruned.get_parameter("first.weight")) <= 8 - free, name
    report = spa.report_of(pruned)
    assert report["verification"]["output_varied"]
    assert not report["frozen"]["operators"]


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "rnn_relu"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_recurrent_layers(cell: str, bidirectional: bool, bias: bool) -> None:
    kinds = {"lstm": nn.LSTM, "gru": nn.GRU}
    nonlinearity = {"rnn": "tanh", "rnn_relu": "relu"}

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            options: dict[str, Any] = {"bidirectional": bidirectional, "bias": bias}
            if cell in nonlinearity:
                options["nonlinearity"] = nonlinearity[cell]
            self.enter = nn.Linear(4, 6)
            self.cell = kinds.get(cell, nn.RNN)(6, 8, 2, batch_first=True, **options)
            self.leave = nn.Linear(16 if bidirectional else 8, 3)

        def forward(self, x: Any) -> Any:
            y, state = self.cell(self.enter(x))
            last = state[0] if isinstance(state, tuple) else state
            return self.leave(y), last[-1].mean(-1)

    model = settled(Network())
    pruned = spa.prune(model, torch.randn(2, 5, 4), ratio=0.5)
    assert isinstance(pruned, Network)
    assert (pruned.cell.input_size, pruned.cell.hidden_size) == (3, 4)
    assert pruned.cell.weight_hh_l1.shape == ((len(model.cell.weight_hh_l1)) // 2, 4)
    assert pruned(torch.randn(3, 7, 4))[0].shape == (3, 7, 3)


def test_parts_of_a_chunk_stay_equal_in_a_module() -> None:
    """`chunk` can't make other parts; a graph can."""
    model = settled(Around(f(lambda x: torch.cat([each.relu() for each in x.chunk(2, 1)], 1)), 8))
    small = [0, 1, 6, 7]
    with torch.no_grad():
        model.first.weight[small] *= 0.01
        model.last.weight[:, small] *= 0.01
    x = torch.randn(2, 3, 4, 4)
    module = spa.prune(model, x, ratio=0.5)
    rows = spa.plan_of(module).kept["first.weight"][0].tolist()
    assert rows[2:] == [4 + row for row in rows[:2]]
    graph = spa.prune(model, x, ratio=0.5, return_type="graph")
    assert spa.plan_of(graph).kept["first.weight"][0].tolist() == [2, 3, 4, 5]


def test_a_free_batch_can_be_cut_into_chunks() -> None:
    """As in RAFT, which encodes both images in one batch."""

    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.leave = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, first: Any, second: Any) -> Any:
            a, b = self.encode(torch.cat([first, second])).relu().chunk(2, 0)
            return self.leave(a - b)

    pruned = spa.prune(settled(Twins()), (torch.randn(2, 4), torch.randn(2, 4)), ratio=0.5)
    assert pruned.encode.out_features == 4
    assert pruned(torch.randn(5, 4), torch.randn(5, 4)).shape == (5, 3)


def test_every_rule_has_a_row() -> None:
    rows = {row[0] for row in ROWS} | {"even_split", "lstm", "gru", "rnn_tanh", "rnn_relu"}
    assert {op_type for domain, op_type in registered() if domain == ATEN} <= rows


def test_unknown_operators_are_reported() -> None:
    analysis = spa.analyze(settled(Around(f(torch.special.bessel_j0), 8)), torch.randn(2, 3, 4, 4))
    reasons = list(analysis.coupling.facts.frozen_operators.values())
    assert reasons == ["no rule for aten::special_bessel_j0"]
