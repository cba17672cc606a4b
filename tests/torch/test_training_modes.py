"""Mixed precision, torch.compile and several processes around a prune amid training."""

from __future__ import annotations

import os
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


def image(seed: int = 0) -> Any:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_automatic_mixed_precision_with_a_scaler(kind: str) -> None:
    dtype = getattr(torch, kind)
    model = settled(Residual()).train()
    optimizer = optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    schedule = spa.Schedule(model, image(), flops=0.5, steps=2, optimizer=optimizer)
    losses = []
    for step in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = model(image()).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
        if step in (1, 3):
            schedule.step()
    assert schedule.ratio <= 0.5 and losses[5] < losses[4]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    momentum = optimizer.state[model.a[0].weight]["momentum_buffer"]
    assert momentum.shape == model.a[0].weight.shape and momentum.isfinite().all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_modules_of_half_precision(dtype: str) -> None:
    kind = getattr(torch, dtype)
    model = settled(Block()).to(kind)
    x = torch.randn(2, 5, 32).to(kind)
    pruned = spa.prune(model, x, ratio=0.5)
    assert all(p.dtype == kind for p in pruned.parameters()) and pruned(x).dtype == kind
    assert pruned.attention.num_heads == 2


@pytest.mark.parametrize("network", ["convolutions", "attention"])
def test_the_result_compiles_and_trains(network: str) -> None:
    model, x = (Residual(), image()) if network == "convolutions" else (Block(), image().flatten(2))
    x = x if network == "convolutions" else torch.randn(2, 5, 32)
    pruned = spa.prune(settled(model), x, flops=0.5)
    compiled = torch.compile(pruned, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), pruned(x), rtol=1e-4, atol=1e-5)
    compiled(x).square().mean().backward()
    got = [p.grad.clone() for p in pruned.parameters()]
    pruned.zero_grad()
    pruned(x).square().mean().backward()
    for parameter, grad in zip(pruned.parameters(), got, strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-3, atol=1e-5)


def test_a_compiled_module_is_pruned_in_place() -> None:
    """What was compiled for the old shapes is compiled anew."""
    model = settled(Residual())
    compiled = torch.compile(model, backend="aot_eager")
    before = compiled(image())
    spa.apply_plan_(model, spa.plan_of(spa.prune(model, image(), flops=0.5)))
    after = compiled(image())
    torch.testing.assert_close(after, model(image()), rtol=1e-4, atol=1e-5)
    assert not torch.equal(before, after)


# --- several processes ------------------------------------------------------------------------


def worker(rank: int, folder: str, criterion: str) -> None:
    """Each process trains on its own data; with "random", each would choose other channels."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(os.path.join(folder, "store"), 2)  # noqa: PTH118
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = settled(Residual()).train()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = optim.AdamW(model.parameters(), 1e-3)
    schedule = spa.Schedule(
        model, image(), flops=0.5, steps=2, optimizer=optimizer, criterion=criterion, seed=rank
    )
    for step in range(4):
        optimizer.zero_grad()
        wrapped(image(rank)).square().mean().backward()
        optimizer.step()
        if step < 2:
            schedule.step()
            wrapped = nn.parallel.DistributedDataParallel(model)
    plan = spa.plan_of(model).to_json()["kept"]
    moments = [optimizer.state[p]["exp_avg"] for p in model.parameters()]
    weights = [p.detach() for p in model.parameters()]
    torch.save((plan, weights, moments, schedule.ratio), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("criterion", ["l1", "random"])
def test_every_process_makes_the_same_plan(tmp_path: Path, criterion: str) -> None:
    torch.multiprocessing.spawn(worker, (str(tmp_path), criterion), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first[0] == second[0] and first[3] == second[3] <= 0.5
    for kind in (1, 2):
        for a, b in zip(first[kind], second[kind], strict=True):
            assert torch.equal(a, b) and a.isfinite().all()
    alone = settled(Residual())
    assert [p.shape for p in alone.parameters()] != [p.shape for p in first[1]]
