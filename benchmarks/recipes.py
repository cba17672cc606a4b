"""Chains of spa-prune with other tools: size, latency and accuracy of each, into docs/recipes.md.

    pip install '.[recipes]'
    python -m benchmarks.recipes [--trained FOLDER] [--page docs/recipes.md]

On the bundled demo network: 200 held-out digits calibrate, the other 800 are measured. With
`--trained` also on MiniLM (see benchmarks/setup_trained.sh). The table is put between two marks.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import spa_graph
from benchmarks.coverage_workers import short
from benchmarks.results import machine, versions
from spa_graph.models_zoo import demo
from spa_graph.runtime.benchmark import interleaved
from spa_graph.runtime.sessions import open_session, run

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
MARKS = "<!-- table -->\n", "<!-- end of table -->\n"
CALIBRATION = 200
SECONDS = 10.0

Feeds = dict[str, Any]
Step = Callable[[Path, Path], None]
"""Reads one file, writes another."""


@dataclass(frozen=True)
class Network:
    """A network with samples for calibration, its metric, and inputs to time it with."""

    name: str
    path: Path
    samples: Feeds
    metric: Callable[[Path], float]
    timed: Feeds
    recipes: Sequence[tuple[str, ...]]
    flops: float


# --- steps ----------------------------------------------------------------------------------------


def prune(source: Path, target: Path, *, samples: Feeds, flops: float) -> None:
    """spa-prune, refitted on samples."""
    spa_graph.prune(source, flops=flops, calibrate=samples, output=target)


def onnxsim(source: Path, target: Path) -> None:
    """onnxsim's simplification."""
    import onnx
    import onnxsim as tool

    simplified, ok = tool.simplify(onnx.load(source))
    assert ok
    onnx.save(simplified, target)


def onnxslim(source: Path, target: Path) -> None:
    """onnxslim's simplification."""
    import onnx
    import onnxslim as tool

    onnx.save(tool.slim(onnx.load(source)), target)


def dynamic(source: Path, target: Path) -> None:
    """ONNX Runtime's dynamic quantisation: int8 weights, activations quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # signed weights of convolutions are not implemented on the CPU
    quantize_dynamic(source, target, weight_type=QuantType.QUInt8)


def static(source: Path, target: Path, *, samples: Feeds) -> None:
    """ONNX Runtime's static quantisation: QDQ, one scale per channel."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            count = len(next(iter(samples.values())))
            self.rows = iter(range(0, count, 10))

        def get_next(self) -> Feeds | None:
            start = next(self.rows, None)
            if start is None:
                return None
            return {name: array[start : start + 10] for name, array in samples.items()}

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared)  # folds BatchNorm, which is pruned easier before
    quantize_static(
        prepared,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )


def optimise(source: Path, target: Path) -> None:
    """ONNX Runtime's transformer optimiser."""
    from onnxruntime.transformers.optimizer import optimize_model

    optimize_model(str(source), model_type="bert", num_heads=0, hidden_size=0).save_model_to_file(
        str(target)
    )


def steps(network: Network) -> dict[str, Step]:
    """All steps by name, for one network."""
    return {
        "prune": partial(prune, samples=network.samples, flops=network.flops),
        "onnxsim": onnxsim,
        "onnxslim": onnxslim,
        "dynamic int8": dynamic,
        "static int8 (QDQ)": partial(static, samples=network.samples),
        "transformer optimiser": optimise,
    }


# --- networks -------------------------------------------------------------------------------------

DEMO = (
    ("prune",),
    ("onnxsim", "prune"),
    ("prune", "onnxsim"),
    ("onnxslim", "prune"),
    ("prune", "onnxslim"),
    ("dynamic int8",),
    ("prune", "dynamic int8"),
    ("dynamic int8", "prune"),
    ("static int8 (QDQ)",),
    ("prune", "static int8 (QDQ)"),
    ("static int8 (QDQ)", "prune"),
)
TEXT = (
    ("prune",),
    ("transformer optimiser",),
    ("prune", "transformer optimiser"),
    ("transformer optimiser", "prune"),
    ("prune", "transformer optimiser", "dynamic int8"),
    ("dynamic int8",),
    ("dynamic int8", "prune"),
)


def demo_network() -> Network:
    """The bundled ResNet-20."""
    images, labels = demo.load_heldout()
    return Network(
        name="demo: ResNet-20, digits, FLOPs 0.5",
        path=demo.model_path(),
        samples={"image": images[:CALIBRATION]},
        metric=lambda path: demo.accuracy(path, images[CALIBRATION:], labels[CALIBRATION:]),
        timed={"image": images[:1]},
        recipes=DEMO,
        flops=0.5,
    )


def text_network(folder: Path) -> Network:
    """MiniLM, a sentence encoder; its metric is that of docs/results.md."""
    from spa_graph.models_zoo.trained import NETWORKS

    network = NETWORKS["minilm"]
    samples = network.inputs(512, seed=0)
    return Network(
        name="MiniLM: sentences, FLOPs 0.8",
        path=network.fetch(folder),
        samples=samples,
        metric=lambda path: network.evaluate(path)[network.metric],
        timed={name: np.asarray(array[:1]) for name, array in samples.items()},
        recipes=TEXT,
        flops=0.8,
    )


# --- table ----------------------------------------------------------------------------------------


def rows(network: Network, folder: Path) -> list[str]:
    """A line for the network as it is, and one for each recipe; a failure is a line too."""
    base = network.path.stat().st_size
    lines = [_row("as it is", network.path, base, network)]
    for recipe in network.recipes:
        name = " → ".join(recipe)
        try:
            lines.append(_row(name, follow(network, recipe, folder), base, network))
        except Exception as error:
            lines.append(f"| {name} | {short(error)} | | |")
        print(lines[-1], flush=True)
    return lines


def follow(network: Network, recipe: Sequence[str], folder: Path) -> Path:
    """The file behind the last step of a recipe."""
    path = network.path
    for number, name in enumerate(recipe):
        target = folder / f"{number}.onnx"
        target.unlink(missing_ok=True)
        draft = folder / "draft.onnx"
        steps(network)[name](path, draft)
        path = draft.rename(target)
    return path


def _row(name: str, path: Path, base: int, network: Network) -> str:
    sessions = [open_session(each) for each in (network.path, path)]
    functions = [partial(run, session, network.timed) for session in sessions]
    before, after = interleaved(functions, seconds=SECONDS, most=1000)
    size = path.stat().st_size
    return (
        f"| {name} | {size / 1e3:,.0f} kB ({size / base:.2f}) "
        f"| {after.median:.3g} ms ({after.median / before.median:.2f}) "
        f"| {network.metric(path):.4f} |"
    )


def table(networks: Sequence[Network]) -> str:
    """All that stands between the marks."""
    lines = [f"* {machine()}", f"* {versions()}", ""]
    with tempfile.TemporaryDirectory() as folder:
        for network in networks:
            lines += [f"### {network.name}", "", "| recipe | size | latency | metric |"]
            lines += ["|---|---|---|---|", *rows(network, Path(folder)), ""]
    return "\n".join(lines)


def main() -> None:
    """Measure all recipes and put the table into the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trained", type=Path, help="the folder of the trained networks")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    networks = [demo_network()]
    if arguments.trained:
        networks.append(text_network(arguments.trained))
    text = arguments.page.read_text(encoding="utf-8")
    head, _, rest = text.partition(MARKS[0])
    tail = rest.partition(MARKS[1])[2]
    arguments.page.write_text(
        f"{head}{MARKS[0]}\n{table(networks)}\n{MARKS[1]}{tail}", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
