"""Modules on the CPU, and on a GPU where there is one: the result stays where the module is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn, optim  # noqa: E402

import spa_graph.torch as spa  # noqa: E402
from tests.torch.torch_networks import Block, Residual, settled  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
GPU = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
)


@pytest.fixture(params=["cpu", GPU])
def device(request: pytest.FixtureRequest) -> Any:
    return torch.device(request.param)


def image(device: Any, count: int = 4) -> Any:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)


def places(module: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
def test_a_module_stays_on_its_device(device: Any, kind: str) -> None:
    dtype = getattr(torch, kind)
    model = settled(Residual()).to(device, dtype).eval()
    pruned = spa.prune(model, image(device).to(dtype), flops=0.5)
    assert places(pruned) == {device.type}
    with torch.no_grad():
        found = pruned(image(device, 3).to(dtype))
    assert found.shape == (3, 10) and found.device.type == device.type and found.dtype == dtype
    on_cpu = spa.prune(copy.deepcopy(model).cpu(), image(device).to(dtype).cpu(), flops=0.5)
    for name, axes in spa.plan_of(on_cpu).kept.items():  # the same channels, wherever it is
        own = spa.plan_of(pruned).kept[name]
        assert {a: i.tolist() for a, i in own.items()} == {a: i.tolist() for a, i in axes.items()}


def test_attention_on_a_device(device: Any) -> None:
    model = settled(Block()).to(device).eval()
    x = torch.randn(2, 5, 32, device=device)
    pruned = spa.prune(model, x, flops=0.5)
    assert places(pruned) == {device.type} and pruned(x).shape == (2, 5, 32)


def test_gradients_and_calibration_on_a_device(device: Any) -> None:
    pytest.importorskip("onnxscript")
    model, x = settled(Residual()).to(device).eval(), image(device, 32)
    data = [(x, torch.arange(32, device=device) % 10)]
    ranked = spa.prune(model, x[:2], flops=0.5, criterion="taylor", data=data, loss="cross-entropy")
    refitted = spa.prune(model, x[:2], flops=0.5, calibrate=x)
    assert places(ranked) == places(refitted) == {device.type}
    plain = spa.apply_plan(model, spa.plan_of(refitted), x[:2])
    want = model(x)
    errors = [(each(x) - want).square().mean() for each in (refitted, plain)]
    assert errors[0] < errors[1]


def test_training_goes_on_on_a_device(device: Any, tmp_path: Path) -> None:
    model = settled(Residual()).to(device)
    optimizer = optim.AdamW(model.parameters(), 1e-3)
    schedule = spa.Schedule(model, image(device), flops=0.5, steps=2, optimizer=optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(image(device)).square().mean().backward()
        optimizer.step()
        schedule.step()
    moments = optimizer.state[model.a[0].weight]["exp_avg"]
    assert moments.shape == model.a[0].weight.shape and moments.device.type == device.type
    targets = torch.zeros(4, dtype=torch.long)
    spa.finetune(model, [(image(torch.device("cpu")), targets)], "cross-entropy", epochs=1)
    spa.save(model, tmp_path / "small.pt")
    loaded = spa.load(tmp_path / "small.pt", settled(Residual()).to(device)).eval()
    torch.testing.assert_close(loaded(image(device)), model.eval()(image(device)))
    found = spa.benchmark([model, loaded], image(device), device=device.type, seconds=0.05)
    assert found["ratios"][0]["median"] > 0
