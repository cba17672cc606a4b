"""How the cost of the analysis grows with the network -> docs/scaling.md and docs/scaling.svg.

    python benchmarks/scaling.py FOLDER [--print]

FOLDER holds one synthetic network at a time, up to 200 MB. Its blocks have what real networks tie
channels with (bottleneck, split, residual, depthwise and grouped convolution, scale, concatenation,
shuffle), and grow in two directions: wider (more channels, the same operators) and deeper (more
operators). Sizes are counted in elements: those of all Dims that may be pruned, which are what the
solver works on. Every size is measured in a process of its own, after a warm-up.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from spa_graph.coupling.analysis import Coupling, analyze
from spa_graph.frontends.onnx import files
from spa_graph.models_zoo.builder import Builder, Value
from spa_graph.passes.canonicalize import canonicalize

DOCS = Path(__file__).resolve().parents[1] / "docs"
PACKAGES = ("spa-prune", "onnx", "onnx-ir", "numpy", "scipy")
LENGTH = 4  # of the sequences: nothing depends on it
GROUP = 4  # channels per group of the grouped convolution
SQUEEZE = 4  # channels of the bottleneck, so that the weights are linear in the width too
SIZES = {  # (blocks, width), from 10^3 to 10^7 elements
    "wider": [(36, width) for width in (8, 64, 600, 6000, 60000)],
    "deeper": [(blocks, 256) for blocks in (1, 9, 85, 850, 8500)],
}
STEPS = ("read", "analyze")
RUNS, LONG = 5, 5.0  # one run, if it takes more CPU seconds than this


# --- the family ------------------------------------------------------------------------------


def family(blocks: int, width: int) -> onnx.ModelProto:
    """A network of blocks of `width` channels, a multiple of 8."""
    net = Builder("family")
    x = _conv(net, "stem", net.input("x", ("batch", 4, LENGTH)), 4, width)
    for block in range(blocks):
        x = _block(net, f"block{block}", x, width)
    return net.finish(_conv(net, "head", x, width, 4), ("batch", 4, LENGTH))


def _block(net: Builder, name: str, x: Value, width: int) -> Value:
    half = width // 2
    x = _conv(net, f"{name}.squeeze", x, width, SQUEEZE)
    left, right = net.split(_conv(net, f"{name}.expand", x, SQUEEZE, width), 1, half, half)
    inner = _conv(net, f"{name}.depthwise", left, half, half, groups=half)
    scale = net.weight(f"{name}.scale", half, 1, fan_in=2)
    left = net.op("Add", left, net.op("Mul", inner, scale))
    right = _conv(net, f"{name}.grouped", right, half, half, groups=half // GROUP)
    x = net.reshape(net.concat(1, left, right), 0, 2, half, LENGTH)
    return net.relu(net.reshape(net.transpose(x, 0, 2, 1, 3), 0, width, LENGTH))


def _conv(net: Builder, name: str, x: Value, inputs: int, outputs: int, groups: int = 1) -> Value:
    """A convolution of kernel size 1."""
    shape = (outputs, inputs // groups, 1)
    weight = net.weight(f"{name}.weight", *shape, fan_in=inputs // groups)
    return net.op("Conv", x, weight, kernel_shape=[1], group=groups)


def elements(coupling: Coupling) -> int:
    """How many elements the solver works on: those of all Dims that are not frozen."""
    relations = coupling.relations
    free = (a for a in range(relations.count) if relations.dim(a) == a and not relations.reason(a))
    return sum(relations.extent(axis).nominal for axis in free)


# --- measuring -------------------------------------------------------------------------------


def measure(path: Path) -> dict[str, Any]:
    """The least CPU seconds of each step of a few runs, and the memory that they needed."""
    _steps(family(1, 8))
    before = _peak()
    runs = [_steps(path)]
    while len(runs) < RUNS and sum(runs[0][0].values()) < LONG:
        runs.append(_steps(path))
    coupling = runs[0][1]
    return {
        "elements": elements(coupling),
        "operators": len(coupling.graph.operators),
        "groups": len(coupling.groups),
        "file": path.stat().st_size,
        "memory": _peak() - before,
        **{step: min(seconds[step] for seconds, _ in runs) for step in STEPS},
    }


def _steps(source: Path | onnx.ModelProto) -> tuple[dict[str, float], Coupling]:
    """CPU seconds of reading with shape inference, and of rules + solve."""
    start = time.process_time()
    model = files.load(source) if isinstance(source, Path) else files.from_message(source)
    graph, _ = canonicalize(model, {})
    read = time.process_time()
    coupling = analyze(graph)
    return {"read": read - start, "analyze": time.process_time() - read}, coupling


def _peak() -> int:
    """The most memory that this process had at once, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def slope(rows: Sequence[dict[str, Any]], step: str) -> float:
    """Of the line through log(elements), log(seconds): 1 is linear."""
    x = np.log([row["elements"] for row in rows])
    return float(np.polyfit(x, np.log([row[step] for row in rows]), 1)[0])


def measure_all(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every size of both directions."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "family.onnx"
    found: dict[str, list[dict[str, Any]]] = {}
    for direction, sizes in SIZES.items():
        for blocks, width in sizes:
            onnx.save(family(blocks, width), path)
            command = [sys.executable, __file__, str(path), "--measure"]
            said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            row = {"blocks": blocks, "width": width, **json.loads(said)}
            found.setdefault(direction, []).append(row)
            print(direction, row, file=sys.stderr, flush=True)
            path.unlink()
    return found


# --- the page --------------------------------------------------------------------------------


def page(found: dict[str, list[dict[str, Any]]]) -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    parts = [
        "# How the analysis scales",
        f"Written by `python benchmarks/scaling.py FOLDER` on {datetime.date.today()}: "
        f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {versions}.",
        "A synthetic network of blocks (bottleneck, split, residual around a scaled depthwise "
        "convolution, grouped convolution, concatenation, shuffle, ReLU) grows in two directions: "
        "*wider* has the same operators with more channels, *deeper* has more operators. Its "
        "*elements* are those of all Dims that may be pruned, which are what the solver works on. "
        f"Seconds are CPU seconds, the least of {RUNS} runs (one where it takes more than "
        f"{LONG:.0f}); *read* is reading the file, shape inference and "
        "canonicalisation, *analyze* is rules, solve and groups. Memory is the peak of the "
        "process above what it had before it opened the file, whose pages count as well. Slopes "
        "are those of a line through log(elements) and log(seconds): 1 is linear. Below 10^5 "
        "elements a wider network costs what its operators cost, whatever their width.",
        "The number of function calls is linear exactly (measured with cProfile: ten times as many "
        "blocks make ten times as many calls); what a slope has above 1 is memory: caches, and "
        "Python's garbage collector.",
        "![Seconds over elements, both axes logarithmic](scaling.svg)",
    ]
    for direction, rows in found.items():
        large = [row for row in rows if row["elements"] > 50_000]
        slopes = ", ".join(
            f"*{step}* {slope(rows, step):.2f} (last three sizes {slope(large, step):.2f})"
            for step in STEPS
        )
        parts += [f"## {direction.capitalize()}", f"Slopes: {slopes}.", _table(rows)]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| blocks | width | operators | elements | groups | read, s | analyze, s "
        "| analyze, µs per element | file, MB | memory, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        per_element = 1e6 * row["analyze"] / row["elements"]
        lines.append(
            f"| {row['blocks']} | {row['width']} | {row['operators']} | {row['elements']} "
            f"| {row['groups']} | {row['read']:.3f} | {row['analyze']:.4f} | {per_element:.2f} "
            f"| {row['file'] / 1e6:.1f} | {row['memory'] / 1e6:.0f} |"
        )
    return "\n".join(lines)


# --- the picture -----------------------------------------------------------------------------

PLOT = (60, 20, 520, 320)  # left, top, right, bottom
DECADES = ((3, 7.3), (-3.5, 2))  # of elements and of seconds
COLOURS = {"wider": "#1f6fb4", "deeper": "#c4521a"}


def picture(found: dict[str, list[dict[str, Any]]]) -> str:
    """Both directions as lines in a log-log plot, as SVG; dashed: a line of slope 1."""
    left, top, right, bottom = PLOT
    shapes = [f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" '
              'fill="none" stroke="#999"/>']  # fmt: skip
    for power in range(3, 8):
        x, _ = _place(10**power, 1)
        shapes.append(_text(x, bottom + 18, f"10^{power}", "middle"))
        shapes.append(f'<path d="M{x} {top}V{bottom}" stroke="#ddd"/>')
    for power in range(-3, 3):
        _, y = _place(1e3, 10**power)
        shapes.append(_text(left - 6, y + 4, f"10^{power}", "end"))
        shapes.append(f'<path d="M{left} {y}H{right}" stroke="#ddd"/>')
    guide = [_place(size, 2e-6 * size) for size in (1e3, 1e7)]
    shapes.append(_line(guide, "#999", "2 4"))
    for number, (direction, rows) in enumerate(found.items()):
        for step, dashes in (("analyze", ""), ("read", "7 4")):
            points = [_place(row["elements"], row[step]) for row in rows]
            shapes.append(_line(points, COLOURS[direction], dashes))
            y = top + 20 + 18 * (2 * number + (step == "read"))
            sample = [(left + 12, y - 4), (left + 42, y - 4)]
            shapes.append(_line(sample, COLOURS[direction], dashes))
            shapes.append(_text(left + 48, y, f"{direction}, {step}", "start"))
    shapes.append(_text((left + right) / 2, bottom + 36, "elements", "middle"))
    shapes.append(_text(14, top - 6, "CPU seconds", "start"))
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + 20} {bottom + 45}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" '
        f'fill="white"/>\n{body}\n</svg>\n'
    )


def _place(size: float, seconds: float) -> tuple[float, float]:
    left, top, right, bottom = PLOT
    (first, last), (low, high) = DECADES
    x = left + (right - left) * (math.log10(size) - first) / (last - first)
    y = bottom - (bottom - top) * (math.log10(seconds) - low) / (high - low)
    return round(x, 1), round(y, 1)


def _line(points: Sequence[tuple[float, float]], colour: str, dashes: str) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    style = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"'
    return f'<polyline points="{path}" {style}/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="#333">{text}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path, help="where the networks are for a while")
    parser.add_argument("--print", action="store_true", help="print the page instead of writing it")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:  # the folder is a file
        print(json.dumps(measure(arguments.folder)))
        return
    found = measure_all(arguments.folder)
    if arguments.print:
        print(page(found))
        return
    (DOCS / "scaling.md").write_text(page(found), encoding="utf-8")
    (DOCS / "scaling.svg").write_text(picture(found), encoding="utf-8")


if __name__ == "__main__":
    main()
