"""Accuracy against FLOPs where training is part of it: before, after, and amid it.

    pip install '.[torch]' scikit-learn torch-pruning==1.6.1
    python -m benchmarks.any_time FOLDER [--networks cnn vit] [--criteria l1 taylor ...]
        [--schedules prune-train train-prune-finetune iterative] [--tools spa-prune torch-pruning]
        [--ratios 0.7 0.5 0.3] [--seeds 3] [--epochs 20] [--recovery 10]

A small CNN and a small ViT on scikit-learn's handwritten digits (1797 images of 8 x 8; every fifth
is held out). Every cell gets the same batches and the same epochs, EPOCHS + RECOVERY, by AdamW with
a cosine for each of the two parts; `prune-train` prunes the untrained network, and trains in one
go, the others prune the one that was trained for EPOCHS. Criteria that need samples (obspa, ...)
get the first epoch's images, on which what is left is refitted before it trains. Both tools are
brought to the same FLOPs, which torch counts. Every cell that is done stands in
FOLDER/any_time.jsonl and is not run again; the page is written after each.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import spa_graph.torch as spa
from benchmarks.coverage_workers import last_layers, short
from benchmarks.grid import Grid, entry
from benchmarks.results import machine, versions
from spa_graph.errors import SpaError
from spa_graph.passes.importance import CRITERIA, make_criterion

PAGE = Path(__file__).resolve().parents[1] / "docs" / "any_time.md"
BATCH = 64
RATE = 2e-3
STEPS = 5
"""How often `iterative` prunes, evenly spread over the first half of the recovery."""
HALVINGS = 9
SCHEDULES = ("prune-train", "train-prune-finetune", "iterative")
TOOLS = ("spa-prune", "torch-pruning")
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Cell:
    """One number: who pruned which network to which share of the FLOPs, when, and by what."""

    network: str
    tool: str
    criterion: str
    schedule: str
    ratio: float
    seed: int
    epochs: int
    recovery: int


@dataclass(frozen=True)
class Result:
    """The held-out accuracy of a cell; `failure` says why there is none."""

    cell: Cell
    accuracy: float = float("nan")
    flops: float = float("nan")
    seconds: float = float("nan")
    failure: str = ""


# --- data and networks ------------------------------------------------------------------------


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to train on, and to be judged by."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images.astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    y = torch.from_numpy(labels.astype(np.int64))
    held_out = torch.arange(len(x)) % 5 == 0
    return x[~held_out], y[~held_out], x[held_out], y[held_out]


def epoch_of(seed: int, number: int) -> list[Batch]:
    """The batches of an epoch, which are the same whoever prunes."""
    x, y, _, _ = digits()
    generator = torch.Generator().manual_seed(1000 * seed + number)
    order = torch.randperm(len(x), generator=generator)
    return [(x[i], y[i]) for i in order.split(BATCH) if len(i) == BATCH]


class Attention(nn.Module):
    """Self-attention as timm writes it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        # spelt out, as torch counts no FLOPs of its fused attention on a CPU
        weights = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """16 patches of 2 x 2, three blocks."""

    def __init__(self, width: int = 64, heads: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(1))


class Residual(nn.Module):
    """Two convolutions around which a shortcut leads."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.shortcut = nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.inner(x) + self.shortcut(x))


def cnn() -> nn.Module:
    """A residual network of six blocks."""
    widths = (16, 16, 16, 32, 32, 64, 64)
    strides = (1, 1, 2, 1, 2, 1)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        *(Residual(a, b, s) for a, b, s in zip(widths, widths[1:], strides, strict=False)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {"cnn": cnn, "vit": ViT}


def example() -> Tensor:
    return digits()[0][:2]


def flops(model: nn.Module) -> int:
    """FLOPs of one image, as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).eval()(example()[:1])
    return int(counter.get_total_flops())


def accuracy(model: nn.Module) -> float:
    model.eval()
    _, _, x, y = digits()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


class Training:
    """A number of epochs by AdamW with a cosine; the module may change between them."""

    def __init__(self, model: nn.Module, seed: int, first: int, epochs: int) -> None:
        self.model, self.seed, self.epochs = model, seed, range(first, first + epochs)
        self.optimizer = torch.optim.AdamW(model.parameters(), RATE)
        self.done = 0

    def become(self, model: nn.Module) -> None:
        """Go on with another module, for tools that carry no momenta over."""
        self.model, rate = model, self.optimizer.param_groups[0]["lr"]
        self.optimizer = torch.optim.AdamW(model.parameters(), rate)

    def epoch(self) -> None:
        self.model.train()
        rate = RATE * (1 + np.cos(np.pi * self.done / len(self.epochs))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for x, y in epoch_of(self.seed, self.epochs[self.done]):
            self.optimizer.zero_grad()
            functional.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
        self.done += 1

    def rest(self) -> None:
        while self.done < len(self.epochs):
            self.epoch()


@cache
def trained(network: str, seed: int, epochs: int) -> nn.Module:
    """The network after its first epochs; none for `prune-train`."""
    torch.manual_seed(seed)
    model = NETWORKS[network]()
    Training(model, seed, 0, epochs).rest()
    return model.eval()


# --- the tools --------------------------------------------------------------------------------


def ours(model: nn.Module, cell: Cell, ratio: float) -> nn.Module:
    """By spa-prune, to a share of the FLOPs of the module as it is."""
    options: dict[str, Any] = {"flops": ratio, "criterion": cell.criterion, "seed": cell.seed}
    criterion = make_criterion(cell.criterion)
    if criterion.needs_gradients:
        options |= {"data": epoch_of(cell.seed, 0), "loss": "cross-entropy"}
    if criterion.needs_data:  # then what is left is refitted, too
        options |= {"calibrate": epoch_of(cell.seed, 0)}
    pruned: nn.Module = spa.prune(model, example(), return_type="module", round_to=1, **options)
    return pruned


def peers(model: nn.Module, cell: Cell, ratio: float) -> nn.Module:
    """By Torch-Pruning, at the least sparsity that brings FLOPs to the share."""
    low, high, found, wanted = 0.0, 0.98, None, ratio * flops(model)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        result = _peer(copy.deepcopy(model).eval(), cell, middle)
        if flops(result) <= wanted:
            high, found = middle, result
        else:
            low = middle
    if found is None:
        raise RuntimeError(f"FLOPs {ratio:g} are not reached at sparsity {high:.2f}")
    return found


def _peer(model: nn.Module, cell: Cell, sparsity: float) -> nn.Module:
    from spa_graph.models_zoo.architectures import import_torchvision

    import_torchvision()  # first: the other imports it
    import torch_pruning as tp

    importances = {
        "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "taylor": tp.importance.GroupTaylorImportance,
        "random": tp.importance.RandomImportance,
        "lamp": tp.importance.LAMPImportance,
        "fpgm": tp.importance.FPGMImportance,
    }
    if cell.criterion not in importances:
        raise RuntimeError(f"Torch-Pruning has no criterion {cell.criterion}")
    torch.manual_seed(cell.seed)
    heads = [module for module in model.modules() if isinstance(module, Attention)]
    pruner = tp.pruner.BasePruner(
        model, example(), importance=importances[cell.criterion](), pruning_ratio=sparsity,
        global_pruning=True, ignored_layers=last_layers(model, (example(),)),
        num_heads={module.qkv: module.num_heads for module in heads},
        prune_num_heads=True, head_pruning_ratio=sparsity,
    )  # fmt: skip
    if cell.criterion == "taylor":
        for x, y in epoch_of(cell.seed, 0):
            functional.cross_entropy(model(x), y).backward()
    pruner.step()
    model.zero_grad()
    for module in heads:  # as its examples do for timm
        module.num_heads = pruner.num_heads[module.qkv]
        module.head_dim = module.qkv.out_features // (3 * module.num_heads)
    return model


PRUNERS = {"spa-prune": ours, "torch-pruning": peers}


def run(cell: Cell) -> Result:
    """Train and prune a cell; a failure of any kind becomes a result."""
    start = time.perf_counter()
    try:
        model = _recovered(cell)
        whole = flops(NETWORKS[cell.network]())
        spent = time.perf_counter() - start
        return Result(cell, accuracy(model), flops(model) / whole, spent)
    except (SpaError, RuntimeError, ValueError, AssertionError, IndexError, KeyError) as error:
        return Result(cell, failure=short(error))


def _recovered(cell: Cell) -> nn.Module:
    prune = PRUNERS[cell.tool]
    before = 0 if cell.schedule == "prune-train" else cell.epochs
    model = copy.deepcopy(trained(cell.network, cell.seed, before))
    left = cell.epochs + cell.recovery - before
    if cell.schedule != "iterative":
        training = Training(prune(model, cell, cell.ratio), cell.seed, before, left)
        training.rest()
        return training.model
    training, whole = Training(model, cell.seed, before, left), flops(model)
    steps = min(STEPS, max(1, left // 2))
    for ratio in spa.ratios(cell.ratio, steps, "cubic"):
        wanted = ratio * whole / flops(training.model)
        if wanted < 1:
            pruned = prune(training.model, cell, wanted)
            if cell.tool == "spa-prune":
                spa.follow(training.optimizer, training.model, pruned)
                training.model = pruned
            else:
                training.become(pruned)
        training.epoch()
    training.rest()
    return training.model


# --- the table --------------------------------------------------------------------------------


def page(results: Sequence[Result]) -> str:
    """The whole page: one line per way, one column per ratio; the mean over seeds, and the span."""
    ratios = sorted({result.cell.ratio for result in results}, reverse=True)
    lines = [
        "# Accuracy against FLOPs, with training", "",
        f"Written by `python -m benchmarks.any_time FOLDER {' '.join(sys.argv[2:])}`;",
        "cells of earlier runs are kept. What is trained on what, and how: see that file. Held-out",
        "accuracy in %, mean over seeds (lowest to highest); with few seeds, differences of less",
        "than a span say little.", "", f"* {machine()}", f"* {versions()}",
    ]  # fmt: skip
    kinds = dict.fromkeys((r.cell.network, r.cell.epochs, r.cell.recovery) for r in results)
    for kind in kinds:
        own = [r for r in results if (r.cell.network, r.cell.epochs, r.cell.recovery) == kind]
        seeds = sorted({result.cell.seed for result in own})
        dense = [100 * accuracy(trained(kind[0], seed, kind[1] + kind[2])) for seed in seeds]
        title = (
            f"{kind[0]}, {kind[1]} + {kind[2]} epochs, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
        )
        columns = " | ".join(f"FLOPs {ratio:g}" for ratio in ratios)
        lines += ["", f"## {title} (whole: {np.mean(dense):.1f})", ""]
        lines += [
            f"| schedule | criterion | tool | {columns} |",
            "|---|---|---|" + "---|" * len(ratios),
        ]
        for way in sorted({(r.cell.schedule, r.cell.criterion, r.cell.tool) for r in own}):
            same = [r for r in own if (r.cell.schedule, r.cell.criterion, r.cell.tool) == way]
            by_ratio = ([r for r in same if r.cell.ratio == ratio] for ratio in ratios)
            entries = [_entry(each, len(seeds)) for each in by_ratio]
            lines.append("| " + " | ".join((*way, *entries)) + " |")
    return "\n".join((*lines, ""))


def _entry(results: Sequence[Result], seeds: int) -> str:
    """The mean and the span, and of how many seeds if not of all."""
    done = [100 * result.accuracy for result in results if not result.failure]
    said = entry(done, [result.failure for result in results], 1)
    return said + f", {len(done)} seed{'s' * (len(done) > 1)}" * (0 < len(done) < seeds)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where results go")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--tools", nargs="+", default=TOOLS, choices=TOOLS)
    parser.add_argument("--criteria", nargs="+", default=["l1", "random"], choices=sorted(CRITERIA))
    parser.add_argument("--schedules", nargs="+", default=SCHEDULES, choices=SCHEDULES)
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.7, 0.5, 0.3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--recovery", type=int, default=10)
    parser.add_argument("--page", type=Path, default=PAGE)
    return parser.parse_args()


def main() -> None:
    """Run what is missing; the page is written after every cell."""
    given = parse()
    given.folder.mkdir(parents=True, exist_ok=True)
    grid = Grid(given.folder / "any_time.jsonl", Cell, Result)
    wanted = [
        Cell(network, tool, criterion, schedule, ratio, seed, given.epochs, given.recovery)
        for seed in range(given.seeds)
        for network in given.networks
        for schedule in given.schedules
        for criterion in given.criteria
        for ratio in given.ratios
        for tool in given.tools
    ]
    for cell in wanted:
        if cell not in grid.known:
            grid.add(run(cell))
            given.page.write_text(page(grid.results))


if __name__ == "__main__":
    main()
