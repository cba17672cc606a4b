"""Prune the trained networks with the real command and write what it costs to docs/results.md.

    benchmarks/setup_trained.sh .venv-trained
    .venv-trained/bin/python benchmarks/results.py FOLDER [NAME...] [--ratios 0.8 0.5]

Options of spa-prune go behind ``--``; ``{inputs}`` stands for a file of calibration samples::

    ... results.py models svhn -- --calibration {inputs}

Networks, pruned networks, reports and samples stay in FOLDER.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from spa_graph.models_zoo.trained import NETWORKS, Trained

REPOSITORY = Path(__file__).resolve().parents[1]
TABLE = REPOSITORY / "docs" / "results.md"
PACKAGES = ("spa-prune", "numpy", "onnx", "onnxruntime", "torch")
INPUTS = "{inputs}"


@dataclass(frozen=True)
class Costs:
    """What a network costs before and after pruning; nan where the report doesn't say.

    Attributes:
        flops: Share of the FLOPs that is left.
        parameters: Share of the parameters that is left.
        before: Median latency of the dense network, in milliseconds.
        after: The same of the pruned network.
    """

    flops: float
    parameters: float
    before: float
    after: float


@dataclass(frozen=True)
class Row:
    """One line of the table: a network at a ratio, or why there is none."""

    network: Trained
    ratio: float
    dense: float = float("nan")
    pruned: float = float("nan")
    fidelity: str = ""
    costs: Costs | None = None
    file: float = float("nan")
    seconds: float = float("nan")
    failure: str = ""


class PruningError(RuntimeError):
    """spa-prune failed; the text is the last line that it printed."""


def read_costs(report: Path) -> Costs:
    """Read a report of spa-prune.  The only place here that knows its keys."""
    document: dict[str, Any] = json.loads(report.read_text())
    before, after = document["before"], document["after"]
    latency = document.get("latency") or {}
    return Costs(
        flops=after["flops"] / before["flops"],
        parameters=after["params"] / before["params"],
        before=latency.get("before_ms", float("nan")),
        after=latency.get("after_ms", float("nan")),
    )


def prune(dense: Path, pruned: Path, report: Path, ratio: float, options: Sequence[str]) -> None:
    """Run spa-prune as a person would, in a process of its own.

    Raises:
        PruningError: The command failed.
    """
    command = [sys.executable, "-m", "spa_graph", str(dense), "--flops", str(ratio)]
    command += ["-o", str(pruned), "--report", str(report), *options]
    pruned.unlink(missing_ok=True)
    report.unlink(missing_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise PruningError(f"exit {done.returncode}: {lines[-1]}")


def write_inputs(network: Trained, folder: Path, count: int) -> Path:
    """Write `count` calibration samples of a network to ``folder/<name>.npz``."""
    path = folder / f"{network.name}.npz"
    arrays: dict[str, Any] = dict(network.inputs(count))
    np.savez(path, **arrays)
    return path


def expand(options: Sequence[str], network: Trained, folder: Path, count: int) -> list[str]:
    """Put a file of calibration samples in the place of ``{inputs}``."""
    if not any(INPUTS in option for option in options):
        return list(options)
    path = str(write_inputs(network, folder, count))
    return [option.replace(INPUTS, path) for option in options]


@cache
def dense_score(name: str, path: Path) -> float:
    """Return the metric of an unpruned network; scored once for all ratios."""
    network = NETWORKS[name]
    return network.evaluate(path)[network.metric]


def measure(network: Trained, folder: Path, ratio: float, options: Sequence[str]) -> Row:
    """Prune one network to one ratio and score it.

    Raises:
        Exception: Whatever fails on the way; `attempt` makes a line of it.
    """
    dense = network.fetch(folder)
    pruned = folder / f"{network.name}-{ratio:g}.onnx"
    report = pruned.with_suffix(".json")
    start = time.perf_counter()
    prune(dense, pruned, report, ratio, options)
    seconds = time.perf_counter() - start
    score = network.evaluate(pruned, reference=dense)
    rest = (f"{key} {value:.3f}" for key, value in score.items() if key != network.metric)
    return Row(
        network,
        ratio,
        dense=dense_score(network.name, dense),
        pruned=score[network.metric],
        fidelity=", ".join(rest),
        costs=read_costs(report),
        file=pruned.stat().st_size / dense.stat().st_size,
        seconds=seconds,
    )


def attempt(
    network: Trained, folder: Path, ratio: float, options: Sequence[str], count: int
) -> Row:
    """Measure; a failure of any kind becomes a row, so that the other networks still run."""
    try:
        return measure(network, folder, ratio, expand(options, network, folder, count))
    except Exception as error:
        reason = str(error) or type(error).__name__
        return Row(network, ratio, failure=reason.splitlines()[0].replace("|", "/"))


def format_row(row: Row) -> str:
    """Return one line of the markdown table."""
    head = f"| {row.network.name} | {row.network.metric} | {row.ratio:g} |"
    if row.costs is None:
        return f"{head} **failed**: {row.failure} | | | | | | | |"
    costs = row.costs
    return (
        f"{head} {costs.flops:.3f} | {costs.parameters:.3f} | {row.file:.3f} | "
        f"{costs.before:.2f} -> {costs.after:.2f} | {row.dense:.3f} | {row.pruned:.3f} | "
        f"{row.fidelity} | {row.seconds:.0f} |"
    )


def machine() -> str:
    """Return the processor, its cores and the operating system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def versions() -> str:
    """Return the versions of Python and of the packages that decide the numbers."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def document(rows: Sequence[Row], options: Sequence[str]) -> str:
    """Return the whole of docs/results.md."""
    command = shlex.join(["spa-prune", "model.onnx", "--flops", "R", "-o", "pruned.onnx", *options])
    head = (
        "# Results",
        "",
        "Written by `benchmarks/results.py`; `benchmarks/setup_trained.sh` installs what it needs.",
        "",
        f"* Command: `{command}`",
        f"* Rerun: `{shlex.join(['python', 'benchmarks/results.py', 'FOLDER', *sys.argv[2:]])}`",
        f"* Machine: {machine()}",
        f"* Versions: {versions()}",
        f"* Date: {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}",
        "",
        "Ratios are pruned / dense.  Fidelity compares the pruned network with the dense one on",
        "the evaluation data.  Time is that of the whole command.",
        "",
        "| network | metric | asked | FLOPs | parameters | file | latency, ms | dense | pruned "
        "| fidelity | time, s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    )
    return "\n".join((*head, *map(format_row, rows), ""))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="where networks and reports go")
    parser.add_argument("names", nargs="*", metavar="name", help="networks (default: all)")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.8, 0.5], metavar="R")
    parser.add_argument("--samples", type=int, default=256, help=f"samples in {INPUTS}")
    parser.add_argument("--output", type=Path, default=TABLE, help="where the table goes")
    own, options = split_options(sys.argv[1:])
    arguments = parser.parse_args(own)
    arguments.options = options
    unknown = set(arguments.names) - set(NETWORKS)
    if unknown:
        parser.error(f"no such network: {', '.join(sorted(unknown))}")
    return arguments


def split_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line at the first ``--``: what is ours, and what is for spa-prune."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:end]), list(arguments[end + 1 :])


def main() -> int:
    """Return 1 if a network failed, else 0.  The table is written after every row."""
    arguments = parse()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name in arguments.names or NETWORKS:
        for ratio in arguments.ratios:
            row = attempt(NETWORKS[name], folder, ratio, arguments.options, arguments.samples)
            rows.append(row)
            print(format_row(row), flush=True)
            arguments.output.write_text(document(rows, arguments.options))
    return int(any(row.failure for row in rows))


if __name__ == "__main__":
    sys.exit(main())
