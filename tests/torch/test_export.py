"""`spa_graph.export.to_torch`: a plan for an export whose weights have other names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from torch import nn

import spa_graph
import spa_graph.torch
from spa_graph import export
from spa_graph.errors import ModelError, OptionError, VerificationError

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch.onnx about itself

INPUTS = (torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.hidden = nn.Linear(16, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(x + self.second(x)).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


@pytest.fixture(scope="module")
def model() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        assert net.norm.running_mean is not None and net.norm.running_var is not None
        for tensor in (*net.parameters(), net.norm.running_mean, net.norm.running_var):
            tensor += 0.1 * torch.rand_like(tensor)
    return net.eval()


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("refit", [False, True])
def test_the_module_computes_what_the_pruned_model_does(
    model: Net, dynamo: bool, refit: bool, tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    torch.onnx.export(model, INPUTS, path, dynamo=dynamo, verbose=False)
    data = np.random.default_rng(0).standard_normal((64, 3, 16, 16)).astype(np.float32)
    options = {"calibrate": data} if refit else {}
    result = spa_graph.prune(path, flops=0.5, **options)
    small = export.to_torch(model, path, result.model, result.plan, INPUTS)  # compares outputs
    assert small.first.out_channels == small.second.in_channels < 16
    assert type(small) is Net


@pytest.mark.parametrize("dynamo", [True, False])
def test_normalisation_folded_in_every_layer(dynamo: bool, tmp_path: Path) -> None:
    """Then no kernel of a convolution is stored as it is in the module."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, width in ((3, 16), (16, 24), (24, 16)):
        norm = nn.BatchNorm2d(width)
        nn.init.uniform_(norm.weight, 0.5, 2)
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), norm, nn.ReLU()]
    up = nn.ConvTranspose2d(16, 12, 2, stride=2)
    net = nn.Sequential(*layers, up, nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 4, 1)).eval()
    path = tmp_path / "net.onnx"
    torch.onnx.export(net, INPUTS, path, dynamo=dynamo, verbose=False)
    result = spa_graph.prune(path, flops=0.5)
    small = export.to_torch(net, path, result.model, result.plan, INPUTS)  # compares outputs
    sizes = [sum(tensor.numel() for tensor in each.parameters()) for each in (small, net)]
    assert sizes[0] < 0.8 * sizes[1]


def test_a_module_that_is_not_the_exported_one(model: Net, tmp_path: Path) -> None:
    """Some weights are found, others were trained on: the outputs tell."""
    path = tmp_path / "net.onnx"
    torch.onnx.export(model, INPUTS, path, dynamo=True, verbose=False)
    result = spa_graph.prune(path, flops=0.5)
    other = Net().eval()
    other.load_state_dict(model.state_dict() | {"head.weight": model.head.weight * 2})
    with pytest.raises(VerificationError, match="differs from the pruned ONNX model"):
        export.to_torch(other, path, result.model, result.plan, INPUTS)


def test_a_module_in_training_mode(model: Net, tmp_path: Path) -> None:
    """It is compared as in evaluation, and stays in its mode."""
    path = tmp_path / "net.onnx"
    torch.onnx.export(model, INPUTS, path, dynamo=True, verbose=False)
    result = spa_graph.prune(path, flops=0.5)
    training = Net().train()
    training.load_state_dict(model.state_dict())
    small = export.to_torch(training, path, result.model, result.plan, INPUTS)  # compares outputs
    assert all(part.training for net in (training, small) for part in net.modules())
    state = training.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            lambda _: "net.pt",
            "takes an nn.Module, not its file or weights; what was given is a str",
        ),
        (lambda net: net.state_dict(), "what was given is a OrderedDict"),
        (torch.jit.script, "takes an nn.Module, as it is in Python; this is a compiled one"),
    ],
)
def test_what_is_no_module(given: Any, says: str, model: Net, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    torch.onnx.export(model, INPUTS, path, dynamo=True, verbose=False)
    result = spa_graph.prune(path, flops=0.5)
    with pytest.raises(OptionError, match=says):
        export.to_torch(given(model), path, result.model, result.plan, INPUTS)


def test_example_inputs_of_another_framework(model: Net) -> None:
    with pytest.raises(ModelError, match=r"^the module fails on .* \(a ndarray\)[^\n]*$"):
        spa_graph.torch.prune(model, INPUTS[0].numpy(), flops=0.5)
