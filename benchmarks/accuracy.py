"""The task metric of the trained networks at equal FLOPs: criteria, repairs, data, and peers.

    benchmarks/setup_trained.sh .venv-trained
    .venv-trained/bin/pip install --no-deps onnxsim==0.8.1 onnx2torch==1.5.15 \\
        torch-pruning==1.6.1 torchvision==0.28.0
    .venv-trained/bin/python -m benchmarks.accuracy FOLDER [NAME...] [--ratios 0.7 0.5]
        [--seeds 3] [--criteria obspa l1] [--repairs none ls] [--data inputs foreign data-free]
        [--tools spa-prune onnxsim torch-pruning]

Every cell that is done stands in FOLDER/accuracy.jsonl and is not run again; page and picture are
written at the end. Calibration samples are never those that the metric is taken on
(`Trained.inputs`); `foreign` ones are real data of another kind.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.coverage_workers import flops, last_layers, short
from benchmarks.grid import Grid, entry
from benchmarks.results import dense_score, machine, versions
from spa_graph.frontends.onnx import files, forms
from spa_graph.models_zoo.trained import NETWORKS, Trained
from spa_graph.models_zoo.trained.base import Runner, batches
from spa_graph.passes.calibrated import Calibrated, calibrate
from spa_graph.passes.differentiated import differentiable
from spa_graph.passes.importance import CRITERIA, Criterion, make_criterion
from spa_graph.passes.network import prepare, rewrite
from spa_graph.passes.options import METHODS, Options, Timer
from spa_graph.passes.pipeline import choose, rank
from spa_graph.passes.reconstruct import reconstruct
from spa_graph.pictures import style

PAGE = Path(__file__).resolve().parents[1] / "docs" / "accuracy_grid.md"
INPUTS, FOREIGN = "inputs", "foreign"
STEPS = 7
"""Halvings of the interval in which a peer's sparsity for the wanted FLOPs is looked for."""
BATCH = 32
LABELLED = 256
"""Samples for criteria by gradients."""
OURS = "spa-prune"


@dataclass(frozen=True)
class Cell:
    """One number: who pruned which network to which share of the FLOPs, and how."""

    network: str
    tool: str
    criterion: str
    repair: str
    data: str
    ratio: float
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """The metric of a cell; `failure` says why there is none.

    fidelity: how near the outputs are to the dense network's, by name.
    """

    cell: Cell
    metric: float = float("nan")
    flops: float = float("nan")
    seconds: float = float("nan")
    failure: str = ""
    fidelity: dict[str, float] = field(default_factory=dict)


# --- ours ----------------------------------------------------------------------------------------


def ours(dense: Path, samples: Any, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Path, float]]:
    """Prune by cells that share network, data and seed: one calibration serves all.

    Yields:
        The cell, the pruned file, seconds; those of the calibration count for each cell.
    """
    first = cells[0]
    options = Options(
        flops=first.ratio, calibrate=samples, seed=first.seed,
        input_shapes=NETWORKS[first.network].input_shapes,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        timer, place = Timer(), Path(folder)
        analysis = prepare(forms.take(str(dense))[0], options, timer)
        calibrated: Calibrated | None = None
        prepared = time.perf_counter() - start
        for criterion in dict.fromkeys(cell.criterion for cell in cells):
            start = time.perf_counter()
            options = replace(options, criterion=criterion)
            made = make_criterion(criterion, first.seed)
            if calibrated is None or _looks_itself(made):
                calibrated = calibrate(analysis, options, timer, place)
            else:
                calibrated = replace(calibrated, criterion=made)
            gradients = None
            if made.needs_gradients:
                labelled = replace(options, data=_own_labels(dense, samples), loss=_likelihood)
                gradients = differentiable(analysis, labelled)
            ranking = rank(analysis, options, timer, calibrated, gradients)
            shared = prepared + time.perf_counter() - start
            choices: dict[float, Any] = {}
            for cell in (each for each in cells if each.criterion == criterion):
                start = time.perf_counter()
                own = replace(options, flops=cell.ratio, reconstruct=cell.repair)
                if cell.ratio not in choices:
                    choices[cell.ratio] = choose(ranking, own, timer)
                pruned = rewrite(analysis, choices[cell.ratio].kept, own, timer)
                if cell.repair != "none":
                    reconstruct(analysis, pruned, calibrated, own, place)
                path = place / "pruned.onnx"
                files.write(pruned.model, path)
                yield cell, path, shared + time.perf_counter() - start


def _looks_itself(made: Criterion) -> bool:
    """Whether a criterion takes more from calibration than the layers' moments."""
    return made.probes or type(made).observe is not Criterion.observe


def _own_labels(dense: Path, samples: dict[str, Any]) -> list[Any]:
    """Batches of (inputs, classes) for criteria by gradients: the classes that the network says.

    Raises:
        RuntimeError: samples are made up, or don't go one by one.
    """
    import torch

    if isinstance(samples, str) or len(samples) != 1:
        raise RuntimeError("gradients need samples with one input")
    ((name, array),) = samples.items()
    run = Runner(dense)
    return [
        ({name: torch.from_numpy(batch)}, torch.from_numpy(run(batch).argmax(-1)))
        for batch in batches(array[:LABELLED], BATCH)
    ]


def _likelihood(outputs: Any, classes: Any) -> Any:
    """The cross-entropy of logits, or of probabilities."""
    from torch.nn import functional

    rows = outputs.reshape(-1, outputs.shape[-1])
    sums = rows.detach().sum(-1)
    likely = bool((rows.detach() >= 0).all() and ((sums - 1).abs() < 1e-3).all())
    logs = rows.clamp_min(1e-12).log() if likely else functional.log_softmax(rows, -1)
    return functional.nll_loss(logs, classes.reshape(-1))


# --- peers ---------------------------------------------------------------------------------------


def at_flops(prune: Callable[[float], Any], cost: Callable[[Any], float], ratio: float) -> Any:
    """What a peer gives at the least sparsity that brings FLOPs to `ratio` of the original's.

    Raises:
        RuntimeError: no sparsity does.
    """
    low, high, found = 0.0, 0.98, None
    for _ in range(STEPS):
        middle = (low + high) / 2
        result = prune(middle)
        if cost(result) <= ratio:
            high, found = middle, result
        else:
            low = middle
    if found is None:
        raise RuntimeError(f"FLOPs {ratio:g} are not reached at sparsity {high:.2f}")
    return found


def onnxsim(dense: Path, samples: dict[str, Any], cell: Cell, output: Path) -> None:
    """onnxsim's structured pruning of channels and heads, perhaps with its fit behind it."""
    import onnx
    import onnxsim as peer

    calibration = [samples]
    if len({len(array) for array in samples.values()}) == 1:  # else a sequence and its first state
        rows = zip(*(batches(array, BATCH) for array in samples.values()), strict=True)
        calibration = [dict(zip(samples, row, strict=True)) for row in rows]
    sizes = NETWORKS[cell.network].input_shapes
    whole, scratch = flops(dense, sizes), output.with_suffix(".try.onnx")

    def prune(sparsity: float) -> Any:
        if cell.criterion == "wanda":
            model = peer.apply_structured_wanda_pruning(str(dense), calibration, sparsity=sparsity)
        else:
            model = peer.apply_structured_pruning(
                str(dense), sparsity, importance_norm=cell.criterion
            )
        return peer.apply_attention_head_pruning(model, sparsity)

    def cost(model: Any) -> float:
        onnx.save(model, scratch)
        return flops(scratch, sizes) / whole

    model = at_flops(prune, cost, cell.ratio)
    if cell.repair == "finetune":
        model = peer.apply_pruning_finetune(str(dense), model, calibration)
    onnx.save(model, output)


def torch_pruning(dense: Path, samples: dict[str, Any], cell: Cell, output: Path) -> None:
    """Torch-Pruning on the module, or on what onnx2torch makes of the file; exported again."""
    import onnx
    import torch

    from spa_graph.models_zoo.architectures import import_torchvision

    import_torchvision()  # first: the others import it, as if its compiled library were there
    import onnx2torch
    import torch_pruning as tp

    importances = {
        "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "bn-scale": tp.importance.BNScaleImportance,
        "fpgm": tp.importance.FPGMImportance,
    }
    original = onnx.load(dense)
    make = NETWORKS[cell.network].module or (lambda: onnx2torch.convert(original))
    example = tuple(torch.from_numpy(np.asarray(array[:2])) for array in samples.values())

    def prune(sparsity: float) -> Any:
        module = make().eval()
        tp.pruner.BasePruner(
            module,
            example,
            importance=importances[cell.criterion](),
            pruning_ratio=sparsity,
            global_pruning=True,
            ignored_layers=last_layers(module, example),
        ).step()
        return module

    whole = tp.utils.count_ops_and_params(make().eval(), example)[0]
    module = at_flops(
        prune, lambda m: float(tp.utils.count_ops_and_params(m, example)[0] / whole), cell.ratio
    )
    names = [value.name for value in original.graph.input]
    batch = {name: {0: "batch"} for name in names}
    result = [original.graph.output[0].name]
    torch.onnx.export(
        module, example, str(output), input_names=names, output_names=result,
        dynamic_axes=batch, dynamo=False,
    )  # fmt: skip


PEERS: dict[str, Callable[[Path, dict[str, Any], Cell, Path], None]] = {
    "onnxsim": onnxsim,
    "torch-pruning": torch_pruning,
}
PEER_WAYS = (
    ("onnxsim", "l2", "none", "none"),
    ("onnxsim", "wanda", "none", INPUTS),
    ("onnxsim", "wanda", "finetune", INPUTS),
    ("torch-pruning", "l1", "none", "none"),
    ("torch-pruning", "l2", "none", "none"),
    ("torch-pruning", "bn-scale", "none", "none"),
    ("torch-pruning", "fpgm", "none", "none"),
)
"""Tool, criterion, repair, data."""


# --- the grid ------------------------------------------------------------------------------------


def run(network: Trained, folder: Path, cells: Sequence[Cell], count: int) -> Iterator[Result]:
    """Run cells of one network; a failure of any kind becomes a result."""
    dense = network.fetch(folder)
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        alone = cell.tool != OURS
        key = (cell.tool, cell.data, cell.seed, cell if alone else None)
        groups.setdefault(key, []).append(cell)
    for group in groups.values():
        waiting = list(group)
        while waiting:
            try:
                for cell, path, seconds in _pruned(network, dense, waiting, count):
                    fidelity = network.evaluate(path, reference=dense)
                    metric = fidelity.pop(network.metric)
                    left, whole = (flops(each, network.input_shapes) for each in (path, dense))
                    waiting = [each for each in waiting if each != cell]
                    yield Result(cell, metric, left / whole, seconds, fidelity=fidelity)
            except Exception as error:  # of one criterion: cells come criterion by criterion
                criterion = waiting[0].criterion
                failed = [each for each in waiting if each.criterion == criterion]
                waiting = [each for each in waiting if each.criterion != criterion]
                yield from (Result(cell, failure=short(error)) for cell in failed)


def _pruned(
    network: Trained, dense: Path, cells: Sequence[Cell], count: int
) -> Iterator[tuple[Cell, Path, float]]:
    first = cells[0]
    if first.tool == OURS:
        samples: Any = first.data  # a way to make them
        if first.data in (INPUTS, FOREIGN):
            samples = network.inputs(count, first.seed, foreign=first.data == FOREIGN)
        yield from ours(dense, samples, cells)
        return
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "peer.onnx"
        start = time.perf_counter()
        PEERS[first.tool](dense, network.inputs(count, first.seed), first, output)
        yield first, output, time.perf_counter() - start


def wanted(arguments: argparse.Namespace, name: str) -> list[Cell]:
    """The cells of one network."""
    peers = [way for way in PEER_WAYS if way[0] in arguments.tools]
    found = [Cell(name, *way, ratio) for way in peers for ratio in arguments.ratios]
    if OURS not in arguments.tools:
        return found
    return found + [
        Cell(name, OURS, criterion, repair, data, ratio, seed)
        for data in arguments.data
        for seed in range(arguments.seeds)
        for criterion in arguments.criteria
        for ratio in arguments.ratios
        for repair in arguments.repairs
    ]


def page(results: Sequence[Result], dense: dict[str, float]) -> str:
    """The whole page: one line per way, one column per ratio; the mean over seeds, and the span."""
    ratios = sorted({result.cell.ratio for result in results}, reverse=True)
    lines = [
        "# Accuracy at equal FLOPs: the grid",
        "",
        f"Written by `python -m benchmarks.accuracy FOLDER {' '.join(sys.argv[2:])}`;",
        "cells of earlier runs are kept. The task metric, mean over seeds (lowest to highest).",
        "[accuracy.md](accuracy.md) says what it shows.",
        "",
        "![The metric of criteria by repairs, for networks and kinds of data](accuracy_grid.svg)",
        "",
        f"* {machine()}",
        f"* {versions()}",
    ]
    for name, value in dense.items():
        lines += ["", f"## {name} ({NETWORKS[name].metric}; dense {value:.3f})", ""]
        lines.append(
            "| tool | criterion | repair | data | " + " | ".join(f"{r:g}" for r in ratios) + " |"
        )
        lines.append("|---|---|---|---|" + "---|" * len(ratios))
        own = [result for result in results if result.cell.network == name]
        ways = dict.fromkeys(
            (r.cell.tool, r.cell.criterion, r.cell.repair, r.cell.data) for r in own
        )
        for way in ways:
            texts = [
                _entry([r for r in own if _way(r) == way and r.cell.ratio == x]) for x in ratios
            ]
            lines.append("| " + " | ".join((*way, *texts)) + " |")
    return "\n".join((*lines, *_worse_than_none(results), ""))


WORSE = (0.01, 0.03)
"""Losses that are counted apart: 200 samples tell two metrics near 0.9 apart by about 0.03."""
SHOWN = 0.5
"""The share of the FLOPs that the picture is of."""


@style.styled
def picture(results: Sequence[Result], dense: dict[str, float], path: Path) -> None:
    """A panel for each network and kind of data: criteria by repairs, the mean metric over seeds.

    Colours say which share of the dense network's metric is left.
    """
    from matplotlib.figure import Figure

    shown = [r for r in results if r.cell.ratio == SHOWN and r.cell.tool == OURS and not r.failure]
    kinds, names, repairs, criteria = (
        list(dict.fromkeys(getattr(r.cell, field_) for r in shown))
        for field_ in ("data", "network", "repair", "criterion")
    )
    drawn = Figure(
        figsize=(style.WIDTH, 0.2 * len(names) * (len(criteria) + 4)), layout="constrained"
    )
    panels = drawn.subplots(len(names), len(kinds), squeeze=False, sharex=True, sharey=True)
    for row, name in enumerate(names):
        for column, kind in enumerate(kinds):
            own = [r for r in shown if (r.cell.network, r.cell.data) == (name, kind)]
            found = np.full((len(criteria), len(repairs)), np.nan)
            for (criterion, repair), values in _means(own).items():
                found[criteria.index(criterion), repairs.index(repair)] = values
            axes = panels[row, column]
            image = axes.imshow(found / dense[name], vmin=0, vmax=1, cmap="cividis", aspect="auto")
            axes.set_title(f"{name} ({dense[name]:.3f}), {kind}")
            axes.set_xticks(range(len(repairs)), repairs)
            axes.set_yticks(range(len(criteria)), criteria)
            for (y, x), value in np.ndenumerate(found):
                if np.isfinite(value):
                    colour = "white" if value < 0.5 * dense[name] else "black"
                    axes.text(
                        x, y, f"{value:.3f}"[1:], ha="center", va="center", color=colour, size=6
                    )
    drawn.colorbar(
        image,
        ax=panels,
        location="top",
        shrink=0.4,
        aspect=40,
        label=f"share of the metric at FLOPs {SHOWN:g}",
    )
    style.save(drawn, path)


def _means(results: Sequence[Result]) -> dict[tuple[str, str], float]:
    """The mean metric over seeds, by criterion and repair."""
    found: dict[tuple[str, str], list[float]] = {}
    for result in results:
        found.setdefault((result.cell.criterion, result.cell.repair), []).append(result.metric)
    return {way: float(np.mean(values)) for way, values in found.items()}


def _worse_than_none(results: Sequence[Result]) -> Iterator[str]:
    """How often a repair costs of the metric, next to the same choice of channels without it."""
    plain = {result.cell: result.metric for result in results if not result.failure}
    gains: dict[tuple[str, str], list[float]] = {}
    for result in results:
        none = plain.get(replace(result.cell, repair="none"))
        if not result.failure and none is not None and result.cell.repair != "none":
            gains.setdefault((result.cell.data, result.cell.repair), []).append(
                result.metric - none
            )
    yield from ("", "## Worse than without a repair", "")
    yield "Networks whose metric is lower than that of the same channels without a repair:"
    columns = ["data", "repair", "networks", "lower"]
    columns += [f"by more than {least:g}" for least in WORSE] + ["mean gain"]
    yield from ("", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|")
    for (data, repair), own in gains.items():
        lower = [sum(gain < -least for gain in own) for least in (0.0, *WORSE)]
        yield f"| {' | '.join(map(str, (data, repair, len(own), *lower)))} | {np.mean(own):+.3f} |"


def _way(result: Result) -> tuple[str, str, str, str]:
    cell = result.cell
    return cell.tool, cell.criterion, cell.repair, cell.data


def _entry(results: Sequence[Result]) -> str:
    done = [result.metric for result in results if not result.failure]
    return entry(done, [result.failure for result in results], 3)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where networks and results go")
    parser.add_argument("names", nargs="*", metavar="name", help="networks (default: all)")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.9, 0.8, 0.7, 0.6, 0.5])
    parser.add_argument("--criteria", nargs="+", default=["obspa"], choices=sorted(CRITERIA))
    parser.add_argument("--repairs", nargs="+", default=["none", "ls"], choices=METHODS)
    parser.add_argument(
        "--data", nargs="+", default=[INPUTS], metavar="inputs|foreign|data-free[:METHOD]"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=1024, help="of the networks' own inputs")
    parser.add_argument("--tools", nargs="+", default=[OURS], choices=[OURS, *PEERS])
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_intermixed_args()
    unknown = set(arguments.names) - set(NETWORKS)
    if unknown:
        parser.error(f"no such network: {', '.join(sorted(unknown))}")
    return arguments


def main() -> None:
    """Run what is missing, then write the page and its picture."""
    arguments = parse()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    grid = Grid(folder / "accuracy.jsonl", Cell, Result)
    for name in arguments.names or NETWORKS:
        missing = [cell for cell in wanted(arguments, name) if cell not in grid.known]
        for result in run(NETWORKS[name], folder, missing, arguments.samples):
            grid.add(result)
    _write(grid.results, folder, arguments.page)


def _write(results: Sequence[Result], folder: Path, path: Path) -> None:
    names = dict.fromkeys(each.cell.network for each in results)
    dense = {n: dense_score(n, NETWORKS[n].fetch(folder)) for n in names}
    path.write_text(page(results, dense))
    if style.drawable() and any(each.cell.ratio == SHOWN and not each.failure for each in results):
        picture(results, dense, path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
