"""Budgets of latency: predicted against measured, the speed-up, and plain FLOPs at equal latency.

    python -m benchmarks.latency export FOLDER [ROW...]     # needs torch, torchvision, timm
    python -m benchmarks.latency run FOLDER NAME            # on an idle machine; one network
    python -m benchmarks.latency refit FOLDER NAME          # the same with calibration; idle, too
    python -m benchmarks.latency render FOLDER              # -> docs/latency.md

A ROW is one of the coverage matrix (`spa_graph.models_zoo.catalogue`), or of FULL, the transformers
at the sizes that people use. Other networks, such as the
trained ones, are run too if their files stand in FOLDER. Results are lines of FOLDER/latency.jsonl.
`refit` prunes a trained network twice, to FOLDER/refit; `score` takes both metrics, and needs
no idle machine (both need benchmarks/requirements-trained.txt).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.results import machine, versions
from spa_graph.api import Ready, ready
from spa_graph.errors import SpaError
from spa_graph.passes.latency.cache import Measurements
from spa_graph.passes.latency.model import LatencyModel
from spa_graph.passes.latency.search import measurements
from spa_graph.runtime.benchmark import interleaved
from spa_graph.runtime.inputs import random_inputs
from spa_graph.runtime.sessions import open_session, run

if TYPE_CHECKING:
    from spa_graph.models_zoo.catalogue import Entry

PAGE = Path(__file__).resolve().parents[1] / "docs" / "latency.md"
ROWS = (
    "torchvision/resnet18", "torchvision/resnet50", "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_large", "torchvision/efficientnet_b0", "torchvision/densenet121",
    "torchvision/shufflenet_v2_x1_0", "torchvision/regnet_y_400mf", "torchvision/convnext_tiny",
    "torchvision/swin_t", "torchvision/googlenet", "torchvision/squeezenet1_1",
    "timm/deit_tiny_patch16_224", "transformers/bert", "transformers/gpt2", "own/lstm", "own/unet",
)  # fmt: skip
FULL = ("full/bert_base", "full/gpt2_124m", "full/vit_b_16")
TOKENS = 128
BUDGET = 0.5
THREADS = 2
FOLDS = 3
HALVINGS = 8
SECONDS = 2.0
SAMPLES = 256
WANTED = 1.8
MARKER = "<!-- table -->"


def export(folder: Path, rows: list[str]) -> None:
    """Write the networks that aren't there yet."""
    from spa_graph.models_zoo import architectures, catalogue

    architectures.import_torchvision()
    for key in rows or (*ROWS, *FULL):
        name = key.rpartition("/")[2]
        path = folder / f"{name}.onnx"
        if not path.exists():
            row = full_size(name) if key in FULL else catalogue.entry(key)
            built = row.build()
            draft = path.with_suffix(".draft")
            architectures.write(built, draft, row.exporters[0], row.opset, row.dynamic_batch, True)
            draft.replace(path)
            print(path, flush=True)


def full_size(name: str) -> Entry:
    """A transformer at its true size, with random weights and a batch that is free."""
    import torch

    from spa_graph.models_zoo.architectures import ARCHITECTURES, SETTLE_BATCH
    from spa_graph.models_zoo.catalogue import Entry
    from spa_graph.models_zoo.transformer_networks import Transformer

    def tokens() -> dict[str, torch.Tensor]:
        return {"input_ids": torch.randint(1000, (SETTLE_BATCH, TOKENS))}

    # without options the library's configurations are those of BERT-base and of the smallest GPT-2
    bert = Transformer("bert", "bert", "BertModel", {}, tokens, ("last_hidden_state",))
    gpt2 = Transformer("gpt2", "gpt2", "GPT2LMHeadModel", {}, tokens, fixed={"use_cache": False})
    vit = partial(ARCHITECTURES["vit_b_16"].build, None)
    builders = {"bert_base": bert.build, "gpt2_124m": gpt2.build, "vit_b_16": vit}
    # TorchScript has no translation for what this GPT-2 makes its mask with
    return Entry("full", name, builders[name], exporters=("dynamo",), settled=False)


def measure(path: Path) -> dict[str, Any]:
    """One network: its candidates, the budget, and FLOPs at the latency that was reached."""
    found: dict[str, Any] = {"name": path.stem}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pruned.onnx"
        with ready(path, output=output, threads=THREADS) as network:
            try:
                result = network.prune(output, latency=BUDGET, latency_seconds=SECONDS)
            except SpaError as error:
                return found | {"failure": str(error)}
            found |= {
                "latency": result.report["latency"],
                "budget": result.report["latency_budget"],
                "flops": result.report["ratio"]["flops"],
                "kept": importance(network, result.report),
                "seconds": sum(result.report["seconds"].values()),
                "plain": plain_flops(network, output, Path(folder)),
            }
            return found | held_out(network)


def refit(name: str, folder: Path) -> None:
    """A trained network to the budget, and by FLOPs to the same latency, both refitted."""
    from spa_graph.models_zoo.trained import NETWORKS

    trained = NETWORKS[name]
    output = folder / "refit" / f"{name}.latency.onnx"
    output.parent.mkdir(exist_ok=True)
    samples = trained.inputs(SAMPLES)
    with ready(trained.fetch(folder), output=output, threads=THREADS, calibrate=samples) as network:
        network.prune(output, latency=BUDGET)
        found = plain_flops(network, output, output.parent)
        (output.parent / "plain.onnx").unlink()
        plain = output.with_name(f"{name}.flops.onnx")
        network.prune(plain, flops=found["flops"])
        told = {"plain": found, "latency": against(network, plain, output)}
        output.with_name(f"{name}.json").write_text(json.dumps(told))


def score(name: str, folder: Path) -> dict[str, Any]:
    """The metric of the network, and of both that `refit` made of it."""
    from spa_graph.models_zoo.trained import NETWORKS

    trained, made = NETWORKS[name], folder / "refit"
    paths = {"dense": trained.fetch(folder)} | {
        how: made / f"{name}.{how}.onnx" for how in ("latency", "flops")
    }
    metrics = {how: next(iter(trained.evaluate(path).values())) for how, path in paths.items()}
    return {"name": name, "refit": metrics, **json.loads((made / f"{name}.json").read_text())}


def importance(network: Ready, report: dict[str, Any]) -> float:
    """The share of the importance that is left: each group keeps its most important channels."""
    scores = np.maximum(network.ranking.scores, 0)
    kept = sum(
        float(np.sort(scores[group.start : group.stop])[::-1][: row["kept"]].sum())
        for group, row in zip(network.analysis.groups, report["groups"], strict=True)
    )
    return kept / float(scores.sum())


def plain_flops(network: Ready, ours: Path, folder: Path) -> dict[str, float]:
    """What `--flops` keeps where it takes as long as ours; the largest share that does."""
    low, high = 0.02, 0.98
    best: dict[str, float] = {}
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        path = folder / "plain.onnx"
        try:
            result = network.prune(path, flops=middle, verify=False)
        except SpaError:
            low = middle
            continue
        ratio = against(network, path, ours)
        if ratio <= 1.02:
            low = middle
            best = {
                "flops": result.report["ratio"]["flops"],
                "kept": importance(network, result.report),
                "latency": ratio,
            }
        else:
            high = middle
    return best


def against(network: Ready, path: Path, other: Path) -> float:
    """Latency relative to another network's."""
    feeds = random_inputs(network.analysis.graph)
    sessions = [open_session(each, threads=THREADS) for each in (path, other)]
    functions = [partial(run, session, feeds) for session in sessions]
    first, second = interleaved(functions, seconds=SECONDS / 2)
    return first.median / second.median


class _Conditions:
    """Stands for a laboratory: the candidates were measured just before."""

    def __init__(self, network: Ready) -> None:
        from spa_graph.passes.latency import Conditions

        self.conditions = Conditions(random_inputs(network.analysis.graph), threads=THREADS)


def held_out(network: Ready) -> dict[str, float]:
    """Candidates predicted from others: rank correlation, median relative error."""
    stand_in: Any = _Conditions(network)
    found, known = measurements(network.analysis, network.options, network._timer, stand_in)
    assert known
    predicted, measured = folds(network, found)
    return {
        "candidates": len(measured),
        "rank": float(spearmanr(predicted, measured).statistic),
        "error": float(np.median(np.abs(predicted / measured - 1))),
    }


def folds(network: Ready, found: Measurements) -> tuple[np.ndarray, np.ndarray]:
    observations = found.observations
    number = np.arange(len(observations)) % FOLDS
    predicted = np.zeros(len(observations))
    for fold in range(FOLDS):
        seen = [each for each, own in zip(observations, number, strict=True) if own != fold]
        model = LatencyModel(network.analysis.coupling, seen)
        for place in np.flatnonzero(number == fold):
            predicted[place] = model.milliseconds(observations[place].counts)
    return predicted, np.array([each.ms for each in observations])


def results(path: Path) -> list[dict[str, Any]]:
    """The last result of each network."""
    lines = path.read_text().splitlines() if path.exists() else []
    return list({each["name"]: each for each in map(json.loads, lines)}.values())


def render(found: list[dict[str, Any]], refitted: list[dict[str, Any]]) -> None:
    """Write the measured part of the page, and keep what stands above it."""
    done = [each for each in found if "failure" not in each]
    fast = [each for each in done if each["latency"]["speedup"] >= WANTED]
    lines = [
        f"Of {len(found)} networks, {len(fast)} are at least {WANTED} times as fast, median "
        f"{np.median([each['latency']['speedup'] for each in done]):.2f}. Candidates predicted "
        f"from others: median rank correlation {np.median([each['rank'] for each in done]):.3f}, "
        f"median error {100 * np.median([each['error'] for each in done]):.1f}%.",
        "",
        *(f"* {line}" for line in (machine(), versions())),
        "",
        "| network | latency | speed-up | rank correlation | error | rounded to | FLOPs left "
        "| importance kept | by `--flops` (latency relative to `--latency`) | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *map(row, sorted(found, key=lambda each: each["name"])),
        "",
        f"With {SAMPLES} samples to calibrate and refit; one run. `--flops` is the largest share "
        "found that isn't slower, and where its latency jumps that is a faster network:",
        "",
        "| network | metric, dense | `--latency 0.5` | `--flops` | its share of the FLOPs "
        "| its latency relative to `--latency` |",
        "|---|---|---|---|---|---|",
        *map(refitted_row, refitted),
    ]
    above, marker, _ = PAGE.read_text().partition(MARKER)
    PAGE.write_text(f"{above}{marker}\n\n" + "\n".join(lines) + "\n")


def refitted_row(found: dict[str, Any]) -> str:
    metrics = [f"{found['refit'][how]:.4f}" for how in ("dense", "latency", "flops")]
    cells = [found["name"], *metrics, f"{found['plain']['flops']:.2f}", f"{found['latency']:.2f}"]
    return f"| {' | '.join(cells)} |"


def row(found: dict[str, Any]) -> str:
    if "failure" in found:
        return f"| {found['name']} | {found['failure']} | | | | | | | | |"
    latency, budget, plain = found["latency"], found["budget"], found["plain"]
    cells = [
        found["name"],
        f"{latency['before_ms']:.3g} to {latency['after_ms']:.3g} ms",
        f"{latency['speedup']:.2f}",
        f"{found['rank']:.3f}",
        f"{100 * found['error']:.1f}%",
        str(budget["unit"]),
        f"{found['flops']:.2f}",
        f"{found['kept']:.3f}",
        f"{plain['kept']:.3f} (FLOPs {plain['flops']:.2f}, latency {plain['latency']:.2f})"
        if plain
        else "not reached",
        f"{found['seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["export", "run", "refit", "score", "render"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.step == "export":
        export(folder, arguments.names)
    elif arguments.step == "render":
        render(results(folder / "latency.jsonl"), results(folder / "refit.jsonl"))
    elif arguments.step == "refit":
        for name in arguments.names:
            refit(name, folder)
    else:
        for name in arguments.names:
            running = arguments.step == "run"
            found = measure(folder / f"{name}.onnx") if running else score(name, folder)
            with (folder / ("latency.jsonl" if running else "refit.jsonl")).open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
