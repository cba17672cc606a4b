"""One clear line for whatever can't be pruned; and a proof that notices mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import spa_graph.torch as spa  # noqa: E402
from spa_graph.errors import (  # noqa: E402
    BudgetError,
    ModelError,
    OptionError,
    SpaError,
    VerificationError,
)
from spa_graph.frontends.torch import editor  # noqa: E402
from tests.torch.torch_networks import Block, Residual, settled  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
IMAGE = torch.zeros(2, 3, 8, 8)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        if self.first(x).sum() > 0:
            return x
        return self.first(x)


class Nothing(nn.Module):
    def forward(self, x: Any) -> Any:
        return x + 1


def moved() -> nn.Module:
    model = Residual()
    model.head = nn.Linear(64, 10, device="meta")
    return model


class Cache:
    """A class that torch.export doesn't know."""


class Uncommon(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return self.first(x), Cache()


BAD: list[tuple[Any, Any, dict[str, Any], type[SpaError], str]] = [
    ("model", IMAGE, {}, ModelError, "a str is no torch.nn.Module"),
    (moved(), IMAGE, {}, ModelError, r"`head.weight` is on the meta device.*load the weights"),
    (Residual(), IMAGE[:, :2], {}, ModelError, r"fails on the example inputs.*\[2, 2, 8, 8\]"),
    (Residual(), (IMAGE, IMAGE), {}, ModelError, "example inputs don't fit Residual.forward: too"),
    (Residual(), {"y": IMAGE}, {}, ModelError, "example inputs don't fit.*'x'"),
    (Residual(), IMAGE[:0], {}, ModelError, "example inputs are empty: give at least one sample"),
    (Branches(), torch.ones(2, 4), {}, ModelError, r"can't trace Branches at .*test_bad_input.py:"),
    (Uncommon(), torch.ones(2, 4), {}, ModelError, "return tensors, tuples or dicts"),
    (
        Residual(),
        IMAGE,
        {"data": [(IMAGE, IMAGE)], "loss": "mse", "criterion": "l1"},
        OptionError,
        "^data has no effect",
    ),
    (nn.LazyLinear(3), torch.ones(2, 4), {}, ModelError, "has no shape yet: run the module once"),
    (Nothing(), torch.ones(2, 4), {}, ModelError, "no prunable channel"),
    (Residual(), IMAGE, {"flops": None}, OptionError, "give a budget: flops, params or ratio"),
    (Residual(), IMAGE, {"flops": 1.5}, OptionError, "^flops must lie between 0 and 1"),
    (Residual(), IMAGE, {"flops": 1e-5}, BudgetError, "can't be reached: the smallest possible"),
    (Residual(), IMAGE, {"criteria": "l1"}, OptionError, "unknown option `criteria`"),
    (Residual(), IMAGE, {"criterion": "best"}, OptionError, "unknown criterion `best`"),
    (
        Residual(),
        IMAGE,
        {"criterion": "wanda"},
        OptionError,
        "wanda needs calibration data: add calibrate=loader",
    ),
]


@pytest.mark.parametrize(("model", "inputs", "options", "kind", "message"), BAD)
def test_bad_input(
    model: Any, inputs: Any, options: dict[str, Any], kind: type[SpaError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        spa.prune(model, inputs, **({"flops": 0.5} | options))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_part_whose_name_torch_needs_itself_is_told() -> None:
    model = nn.Sequential(nn.Linear(4, 8))
    model.add_module("meta", nn.Linear(8, 4))
    with pytest.raises(ModelError, match=r"meta.*give that part of the module another name"):
        spa.prune(model, torch.ones(2, 4), flops=0.5)


def test_a_scripted_module_is_refused() -> None:
    scripted = torch.jit.script(nn.Linear(4, 4))
    with pytest.raises(ModelError, match="a TorchScript module can't be traced: give the module"):
        spa.prune(scripted, torch.ones(2, 4), flops=0.5)


def test_what_export_prints_beside_its_error_is_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="can't trace Branches"):
        spa.prune(Branches(), torch.ones(2, 4), flops=0.5)
    assert capfd.readouterr() == ("", "")


def test_a_module_on_several_devices_is_refused() -> None:
    """As there is one device here, a parameter says that it is on another."""

    class Elsewhere(nn.Parameter):
        device = torch.device("cuda", 1)

    model = Residual()
    model.head.bias = Elsewhere(model.head.bias.detach())
    with pytest.raises(ModelError, match=r"several devices \(`.*` on cpu, `head.bias` on cuda:1\)"):
        spa.prune(model, IMAGE, flops=0.5)


def test_a_derivative_that_is_no_number_is_told() -> None:
    def loss(outputs: Any, _: Any) -> Any:  # 0, and its slope is 0 / 0
        return (outputs - outputs.detach()).square().sum().sqrt()

    data = [(torch.randn(2, 3, 8, 8), torch.zeros(2))]
    with pytest.raises(ModelError, match=r"derivative of the loss by `.*` is NaN or infinite"):
        spa.prune(settled(Residual()), IMAGE, flops=0.5, criterion="taylor", data=data, loss=loss)


def test_weights_that_are_no_numbers_are_named() -> None:
    model = settled(Residual())
    with torch.no_grad():
        model.a[0].weight[0] = float("nan")
    with pytest.raises(ModelError, match=r"weight `a.0.weight` holds NaN"):
        spa.prune(model, torch.randn(2, 3, 8, 8), flops=0.5)


def test_a_wrong_slice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one weight other channels are kept than the plan says."""
    right = editor.sliced

    def wrong(tensor: Any, kept: Any) -> Any:
        if tensor.shape == (32, 64) and 1 in kept:
            kept = {1: np.arange(len(kept[1]))}
        return right(tensor, kept)

    monkeypatch.setattr(editor, "sliced", wrong)
    with pytest.raises(VerificationError, match="differs by"):
        spa.prune(settled(Block()), torch.randn(2, 5, 32), ratio=0.5)


def test_a_layer_of_zeros_hides_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    model = settled(Residual())
    nn.init.zeros_(model.head.weight)
    pruned = spa.prune(model, torch.randn(2, 3, 8, 8), flops=0.5)
    assert not pruned.head.weight.any()
    assert spa.report_of(pruned)["verification"]["output_varied"]
    monkeypatch.setattr(editor, "sliced", lambda t, kept: _first(t, kept))
    with pytest.raises(VerificationError):
        spa.prune(model, torch.randn(2, 3, 8, 8), flops=0.5)


def _first(tensor: Any, kept: Any) -> Any:
    for axis, index in kept.items():
        tensor = tensor.narrow(axis, 0, len(index))
    return tensor.clone()
