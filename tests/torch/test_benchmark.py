"""Modules measured next to each other."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import spa_graph.torch as spa  # noqa: E402
from spa_graph.errors import OptionError  # noqa: E402
from tests.torch.torch_networks import Residual, settled  # noqa: E402


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.filterwarnings("ignore")  # the compiler has warnings of its own
def test_two_modules_in_turn(compiled: bool) -> None:
    x = torch.randn(64, 3, 8, 8)
    small = settled(Residual())
    large = nn.Sequential(small, nn.Linear(10, 3000), nn.Linear(3000, 3000), nn.Linear(3000, 3000))
    small.train()
    frozen = next(m for m in small.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    want = {name: tensor.clone() for name, tensor in large.state_dict().items()}
    try:
        found = spa.benchmark([large, small], x, compiled=compiled, seconds=0.3)
    except Exception as error:
        if compiled and "ompiler" in f"{type(error)}{error}":
            pytest.skip("torch.compile finds no compiler here")
        raise
    assert [each["name"] for each in found["modules"]] == ["Sequential", "Residual"]
    assert found["ratios"][0]["median"] < 1
    low, high = found["ratios"][0]["interval"]
    assert low <= found["ratios"][0]["median"] <= high
    assert found["versions"]["torch"] == torch.__version__
    assert small.training and not frozen.training
    assert all(torch.equal(want[name], tensor) for name, tensor in large.state_dict().items())


def test_what_it_refuses() -> None:
    for wrong in ([], torch.nn.Sequential(torch.nn.ReLU())):
        with pytest.raises(OptionError, match="one or more modules"):
            spa.benchmark(wrong, torch.zeros(1))
    with pytest.raises(OptionError, match="a str is no module: 'x'"):
        spa.benchmark([nn.ReLU(), "x"], torch.zeros(1))  # type: ignore[list-item]
    with pytest.raises(OptionError, match="seconds must be above 0, not -1"):
        spa.benchmark([nn.ReLU()], torch.zeros(1), seconds=-1)
    with pytest.raises(OptionError, match="Linear fails on the example inputs: mat1 and mat2"):
        spa.benchmark([nn.Linear(3, 4)], torch.zeros(1, 2))
    with pytest.raises(OptionError, match="device xpu: this machine or torch has none"):
        spa.benchmark([nn.ReLU()], torch.zeros(1), device="xpu")
