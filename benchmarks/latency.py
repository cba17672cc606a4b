"""Budgets of latency: predicted against measured, the speed-up, and plain FLOPs at equal latency.

    python -m benchmarks.latency export FOLDER [ROW...]     # needs torch, torchvision, timm
    python -m benchmarks.latency run FOLDER NAME...         # on an idle machine
    python -m benchmarks.latency match FOLDER NAME...       # the same with samples; idle, too
    python -m benchmarks.latency score FOLDER NAME...       # any time after `match`
    python -m benchmarks.latency render FOLDER              # -> docs/latency.md

A ROW is one of the coverage matrix (`spa_graph.models_zoo.catalogue`), or of FULL, the transformers
at the sizes that people use. Other networks, such as the trained ones, are run too if their files
stand in FOLDER. Results are lines of FOLDER/latency.jsonl and FOLDER/accuracy.jsonl.

`match` looks for pairs of networks that take equally long, one by `--flops` and one by `--latency`,
from the same importances, and writes their plans to FOLDER/pairs; `score` refits both with the
same samples and compares the metric (both need benchmarks/requirements-trained.txt).

Where a machine is idle only now and then, `--when FILE` lets `run` and `match` do all that needs
no idle machine, such as calibration, and then wait until FILE is there; they remove it when all is
measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.results import machine, versions
from spa_graph.api import Ready, apply_plan, ready
from spa_graph.errors import SpaError
from spa_graph.frontends.onnx import files
from spa_graph.passes.latency.cache import Measurements
from spa_graph.passes.latency.model import LatencyModel
from spa_graph.passes.latency.search import TOLERANCE, measurements
from spa_graph.plan import Plan
from spa_graph.runtime.benchmark import measure as compared
from spa_graph.runtime.inputs import random_inputs

if TYPE_CHECKING:
    from spa_graph.models_zoo.catalogue import Entry

PAGE = Path(__file__).resolve().parents[1] / "docs" / "latency.md"
ROWS = (
    "torchvision/resnet18", "torchvision/resnet50", "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_large", "torchvision/efficientnet_b0", "torchvision/densenet121",
    "torchvision/shufflenet_v2_x1_0", "torchvision/regnet_y_400mf", "torchvision/convnext_tiny",
    "torchvision/swin_t", "torchvision/googlenet", "torchvision/squeezenet1_1",
    "torchvision/vgg11_bn", "torchvision/inception_v3", "torchvision/mnasnet1_0",
    "torchvision/efficientnet_v2_s", "torchvision/resnext50_32x4d",
    "timm/deit_tiny_patch16_224", "timm/mobilenetv4_conv_small", "timm/ghostnet_050",
    "timm/repvit_m1", "timm/edgenext_xx_small", "timm/fastvit_t8", "timm/hgnetv2_b0",
    "timm/convnextv2_atto", "timm/efficientvit_b0", "timm/mixer_s32_224", "timm/pvt_v2_b0",
    "transformers/bert", "transformers/gpt2", "own/lstm", "own/gru", "own/unet", "own/yolo",
    "torchvision/alexnet", "torchvision/mobilenet_v3_small", "torchvision/resnext50_32x4d",
    "torchvision/inception_v3", "torchvision/efficientnet_v2_s",
    "torchvision/lraspp_mobilenet_v3_large", "torchvision/regnet_x_400mf", "torchvision/resnet34",
    "torchvision/vit_b_32", "timm/crossvit_tiny_240", "timm/cspnext_tiny", "timm/dla46x_c",
    "timm/efficientformer_l1", "timm/ese_vovnet19b_slim_dw", "timm/gmlp_ti16_224",
    "timm/hardcorenas_b", "timm/hrnet_w18_small", "timm/inception_next_atto",
    "timm/lcnetv2_small", "timm/levit_128s", "timm/mixnet_s", "timm/mobileone_s1",
    "timm/mobilevit_xxs", "timm/nf_regnet_b0", "timm/pit_ti_224", "timm/poolformer_s12",
    "timm/repvgg_a0", "timm/resmlp_12_224", "timm/resnest14d", "timm/rexnet_100",
    "timm/seresnext26t_32x4d", "timm/selecsls42", "timm/starnet_s050", "timm/swiftformer_xs",
    "timm/tiny_vit_5m_224", "timm/visformer_tiny", "timm/xcit_nano_12_p8_224", "timm/skresnet18",
    "timm/fasternet_t0", "timm/vit_tiny_patch16_224", "timm/coat_tiny", "timm/efficientvit_m0",
    "timm/mambaout_femto", "timm/resnetv2_18", "timm/res2next50", "own/tasnet", "own/wavenet",
    "own/unet_groupnorm", "own/fpn", "own/temporal", "own/generator", "own/squeeze_excite",
    "own/super_resolution", "own/rnn", "own/video", "transformers/segformer",
    "transformers/wav2vec2", "transformers/whisper", "transformers/vit", "transformers/llama",
)  # fmt: skip
FULL = ("full/bert_base", "full/gpt2_124m", "full/vit_b_16")
TOKENS = 128
BUDGET = 0.5
THREADS = 2
FOLDS = 3
HALVINGS = 8
SECONDS = 2.0
REPORTED_SECONDS = 10.0
SAMPLES = 256
WANTED = 1.8
SHARES = (0.75, 0.5)
"""Of the latency, at which accuracy is compared: at the lower one little of it may be left."""
HOW = ("latency", "flops")
EQUAL = 0.03
"""Two networks are taken for equally fast whose latencies differ by no more."""
AS_FAST = 1.02
"""A network takes as long as another if it takes at most so many times as long."""
TRIES = 3


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


def measure(path: Path, when: Path | None) -> dict[str, Any]:
    """One network: its candidates, the budget, and FLOPs at the latency that was reached."""
    found: dict[str, Any] = {"name": path.stem}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pruned.onnx"
        with ready(path, output=output, threads=THREADS) as network, idle(when):
            try:
                result = network.prune(output, latency=BUDGET, latency_seconds=REPORTED_SECONDS)
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


def match(name: str, folder: Path, when: Path | None) -> None:
    """Plans by FLOPs and by latency that are equally fast, at each of SHARES of the latency."""
    from spa_graph.models_zoo.trained import NETWORKS

    trained, pairs = NETWORKS[name], folder / "pairs"
    pairs.mkdir(exist_ok=True)
    samples = trained.inputs(SAMPLES)
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        ready(
            trained.fetch(folder), output=Path(scratch) / "pruned.onnx", threads=THREADS,
            calibrate=samples,
        ) as calibrated,
    ):  # fmt: skip
        network = unfitted(calibrated)
        network.prune(flops=SHARES[0], verify=False)  # measures groups, which takes a while
        with idle(when):
            found = [equally_fast(network, share, Path(scratch)) for share in SHARES]
    for pair in found:
        for how in HOW:
            pair.pop(how).save(pairs / f"{name}.{pair['share']}.{how}.json")
    (pairs / f"{name}.json").write_text(json.dumps(found))


def unfitted(network: Ready) -> Ready:
    """The same without refits: weights' values decide nothing about latency."""
    return replace(network, options=replace(network.options, reconstruct="none"))


def equally_fast(network: Ready, share: float, folder: Path) -> dict[str, Any]:
    """A pair of plans; the budget of latency follows the network that FLOPs lead to.

    Latency jumps where FLOPs don't, so that not every latency can be had by FLOPs.
    """
    plain, ours = folder / "flops.onnx", folder / "latency.onnx"
    by_flops = nearest(network, share, plain)
    found: list[dict[str, Any]] = []
    wanted = by_flops["latency"]
    for _ in range(TRIES):
        result = network.prune(ours, latency=wanted, verify=False)
        ratio, interval = against(network, ours, plain, SECONDS)
        found.append({"latency": result.plan, "ratio": ratio, "interval": interval,
                      "by_latency": result.report["ratio"]["flops"]})  # fmt: skip
        if abs(ratio - 1) <= EQUAL:
            break
        wanted = min(wanted / ratio, 0.99)
    best = min(found, key=lambda each: abs(each["ratio"] - 1))
    return {"share": share, "flops": by_flops["plan"], "by_flops": by_flops["flops"],
            "reached": by_flops["latency"], **best}  # fmt: skip


def nearest(network: Ready, share: float, path: Path) -> dict[str, Any]:
    """The network that FLOPs lead to whose latency is nearest to a share of the original's."""
    original = path.with_name("original.onnx")
    files.write(network.analysis.original, original)
    low, high = 0.02, 0.98
    found: list[dict[str, Any]] = []
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        try:
            result = network.prune(path, flops=middle, verify=False)
        except SpaError:  # there is no network as small
            low = middle
            continue
        ratio, _ = against(network, path, original)
        flops = result.report["ratio"]["flops"]
        found.append({"plan": result.plan, "flops": flops, "latency": ratio, "asked": middle})
        if abs(ratio / share - 1) <= EQUAL:
            break
        low, high = (middle, high) if ratio < share else (low, middle)
    best = min(found, key=lambda each: abs(each["latency"] / share - 1))
    network.prune(path, flops=best["asked"], verify=False)  # the file is that of the last one
    return best


@contextmanager
def idle(when: Path | None) -> Iterator[None]:
    """Wait until the machine is idle, which a file says that is removed afterwards."""
    if when is None:
        yield
        return
    print(f"waiting for {when}", flush=True)
    while not when.exists():
        time.sleep(0.1)
    try:
        yield
    finally:
        when.unlink()


def score(name: str, folder: Path) -> dict[str, Any]:
    """The metric of the network, and of each pair that `match` found, refitted."""
    from spa_graph.models_zoo.trained import NETWORKS

    trained, pairs = NETWORKS[name], folder / "pairs"
    model, samples = trained.fetch(folder), trained.inputs(SAMPLES)
    found: list[dict[str, Any]] = json.loads((pairs / f"{name}.json").read_text())
    for pair in found:
        for how in HOW:
            path = pairs / f"{name}.{pair['share']}.{how}.onnx"
            apply_plan(model, Plan.load(path.with_suffix(".json")), output=path, calibrate=samples)
            pair[how] = trained.evaluate(path)[trained.metric]
    dense = trained.evaluate(model)[trained.metric]
    return {"name": name, "metric": trained.metric, "dense": dense, "pairs": found}


def importance(network: Ready, report: dict[str, Any]) -> float:
    """The share of the importance that is left: each group keeps its most important channels."""
    scores = np.maximum(network.ranking.scores, 0)
    kept = sum(
        float(np.sort(scores[group.start : group.stop])[::-1][: row["kept"]].sum())
        for group, row in zip(network.analysis.groups, report["groups"], strict=True)
    )
    return kept / float(scores.sum())


def plain_flops(network: Ready, ours: Path, folder: Path) -> dict[str, float]:
    """What `--flops` keeps where it takes as long as ours; the largest share that does.

    Both are timed next to the original, as budgets are: next to each other, small networks would
    leave each other more of the cache. What was fast enough is timed once more, longer, so that
    the largest share isn't the luckiest.
    """
    original, path = folder / "original.onnx", folder / "plain.onnx"
    files.write(network.analysis.original, original)
    wanted = against(network, ours, original, REPORTED_SECONDS)[0]
    low, high = 0.02, 0.98
    best: dict[str, float] = {}
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        try:
            result = network.prune(path, flops=middle, verify=False)
        except SpaError:
            low = middle
            continue
        ratio = against(network, path, original)[0] / wanted
        if ratio <= AS_FAST:
            ratio = against(network, path, original, REPORTED_SECONDS)[0] / wanted
        if ratio <= AS_FAST:
            low = middle
            best = {
                "flops": result.report["ratio"]["flops"],
                "kept": importance(network, result.report),
                "latency": ratio,
            }
        else:
            high = middle
    return best


def against(
    network: Ready, path: Path, other: Path, seconds: float = SECONDS / 2
) -> tuple[float, tuple[float, float]]:
    """Latency relative to another network's, and where that lies with 95% confidence."""
    feeds = random_inputs(network.analysis.graph)
    found = compared(other, path, feeds, seconds=seconds, threads=THREADS)
    return found.after / found.before, found.interval


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


def render(found: list[dict[str, Any]], scored: list[dict[str, Any]]) -> None:
    """Write the measured parts of the page of which there are results, and keep all else."""
    large = {key.rpartition("/")[2] for key in FULL}
    if small := [each for each in found if each["name"] not in large]:
        section("architectures", [*summary(small), *conditions(small), *table(small)])
    if full := [each for each in found if each["name"] in large]:
        section("full size", [*conditions(full), *table(full)])
    if scored:
        section("accuracy", [*conditions(scored), *accuracy(scored)])


def section(name: str, lines: list[str]) -> None:
    """Replace what stands between two markers of the page."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    above, _, rest = PAGE.read_text().partition(start)
    _, _, below = rest.partition(end)
    text = "\n".join(lines)
    PAGE.write_text(f"{above}{start}\n\n{text}\n\n{end}{below}")


def conditions(found: list[dict[str, Any]]) -> list[str]:
    """Where results were measured, and with what."""
    told = dict.fromkeys(line for each in found for line in each["measured_on"])
    return [*(f"* {line}" for line in told), ""]


def summary(found: list[dict[str, Any]]) -> list[str]:
    done = [each for each in found if "failure" not in each]
    fast = [each for each in done if each["latency"]["speedup"] >= WANTED]
    return [
        f"Of {len(found)} networks, {len(fast)} are at least {WANTED} times as fast, median "
        f"{np.median([each['latency']['speedup'] for each in done]):.2f}. Candidates predicted "
        f"from others: median rank correlation {np.median([each['rank'] for each in done]):.3f}, "
        f"median error {100 * np.median([each['error'] for each in done]):.1f}%. ¹ More than "
        f"{100 * TOLERANCE:g}% faster than was asked for.",
        "",
    ]


def table(found: list[dict[str, Any]]) -> list[str]:
    """A row per network that was pruned to the budget."""
    return [
        "| network | latency | speed-up | rank correlation | error | rounded to | FLOPs left "
        "| importance kept | by `--flops` (latency relative to `--latency`) | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *map(row, sorted(found, key=lambda each: each["name"])),
    ]


def accuracy(scored: list[dict[str, Any]]) -> list[str]:
    """The table of networks that are equally fast."""
    pairs = [(each, pair) for each in scored for pair in each["pairs"]]
    better = sum(pair["latency"] > pair["flops"] for _, pair in pairs)
    equal = sum(pair["latency"] == pair["flops"] for _, pair in pairs)
    return [
        f"Of {len(pairs)} pairs that are about equally fast, refitted with the same {SAMPLES} "
        f"samples, `--latency` has the better metric in {better}, the same in {equal}, mean "
        f"difference {np.mean([pair['latency'] - pair['flops'] for _, pair in pairs]):+.3f}:",
        "",
        "| network | metric | dense | latency, of the dense one's | by `--latency` | by `--flops` "
        "| FLOPs left by `--latency`, by `--flops` | latency, relative to `--flops` (95%) |",
        "|---|---|---|---|---|---|---|---|",
        *(accuracy_row(each, pair) for each, pair in pairs),
    ]


def accuracy_row(found: dict[str, Any], pair: dict[str, Any]) -> str:
    low, high = pair["interval"]
    cells = [
        found["name"],
        found["metric"],
        f"{found['dense']:.4f}",
        f"{pair['reached']:.2f}",
        f"{pair['latency']:.4f}",
        f"{pair['flops']:.4f}",
        f"{pair['by_latency']:.2f}, {pair['by_flops']:.2f}",
        f"{pair['ratio']:.2f} ({low:.2f} to {high:.2f})",
    ]
    return f"| {' | '.join(cells)} |"


def row(found: dict[str, Any]) -> str:
    if "failure" in found:
        return f"| {found['name']} | {found['failure']} | | | | | | | | |"
    latency, budget, plain = found["latency"], found["budget"], found["plain"]
    beyond = 1 / latency["speedup"] < (1 - TOLERANCE) * BUDGET
    cells = [
        found["name"],
        f"{latency['before_ms']:.3g} to {latency['after_ms']:.3g} ms",
        f"{latency['speedup']:.2f}" + " ¹" * beyond,
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
    parser.add_argument("step", choices=["export", "run", "match", "score", "render"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--when", type=Path)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    measured, scored = folder / "latency.jsonl", folder / "accuracy.jsonl"
    if arguments.step == "export":
        export(folder, arguments.names)
    elif arguments.step == "render":
        render(results(measured), results(scored))
    for name in arguments.names:
        if arguments.step == "run":
            keep(measure(folder / f"{name}.onnx", arguments.when), measured)
        elif arguments.step == "match":
            match(name, folder, arguments.when)
        elif arguments.step == "score":
            keep(score(name, folder), scored)


def keep(found: dict[str, Any], path: Path) -> None:
    """Add a line to the results."""
    found |= {"measured_on": [machine(), versions()]}
    with path.open("a") as file:
        file.write(json.dumps(found) + "\n")
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
