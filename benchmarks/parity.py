"""One plan, two ways: a module is pruned and exported, or exported and pruned.

    pip install '.[torch]' torchvision transformers
    python -m benchmarks.parity FOLDER [--suites torchvision transformers] [--rows 'resnet*']
        [--seconds 600] [--memory 16]

Both must give the same network: as many FLOPs, and the same outputs on random inputs, within what
`spa-prune` tolerates of its own proof (2e-4 of the outputs' spread, and rounding). Beside that,
whether both frontends see the same coupled channels: every position of every weight that both know
belongs to a channel in each, or stays. Networks are those of the coverage matrix, to half of the
FLOPs; where that can't be reached, half of the channels of each group are removed.

Every network runs in a process of its own, with limits of time and memory. What is done stands in
FOLDER/parity.jsonl and is not run again; docs/parity.md is written after each.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.grid import Grid
from benchmarks.results import machine, versions
from spa_graph.coupling.analysis import Coupling
from spa_graph.models_zoo.catalogue import entries, entry

PAGE = Path(__file__).resolve().parents[1] / "docs" / "parity.md"
SUITES = ("transformers", "torchvision")
NOTES = (
    "* Detectors: torch.export can't trace what torchvision does with boxes, whose number depends",
    "  on the image (`ops/boxes.py`). TorchScript exports of them can be pruned, see coverage.md.",
    "* mvit_v2_s: torch.export alone takes most of its time, with a free batch.",
    "* Rows of 2026-11-26 are of an AMD EPYC. Rows were run as the program grew; deberta_v2,",
    "  electra, falcon, mamba, mixtral, qwen2_moe and t5 with the latest, the large ones as well.",
)
"""What the failures that were seen, and the numbers, mean."""
Labels = dict[tuple[str, int], NDArray[np.int64]]
"""By weight and axis, the channel of each position; -1 stays."""


@dataclass(frozen=True)
class Cell:
    """A network of the matrix."""

    key: str


@dataclass(frozen=True)
class Result:
    """What became of a network; `failure` says why there is nothing to compare.

    returned: whether pruning gave a module of the same class, or a graph.
    groups: how the coupled channels compare: same, or how the export's are.
    flops: the share that is left; flops_export: of the export that was pruned.
    error: the largest difference of the outputs, as a share of what is tolerated.
    day: when it was run.
    """

    cell: Cell
    returned: str = ""
    groups: str = ""
    flops: float = float("nan")
    flops_export: float = float("nan")
    error: float = float("nan")
    seconds: float = float("nan")
    failure: str = ""
    day: str = ""


def measure(key: str) -> Result:
    """Prune a network in both ways."""
    import torch

    import spa_graph
    import spa_graph.torch as spa
    from spa_graph.errors import BudgetError
    from spa_graph.frontends.torch.exporting import written

    start = time.perf_counter()
    module, inputs, _ = entry(key).build()
    try:
        pruned = spa.prune(module, inputs, flops=0.5)
    except BudgetError:
        pruned = spa.prune(module, inputs, ratio=0.5)
    analysis = spa.analyze(module, inputs)
    source = written(analysis.traced)
    theirs = spa_graph.analyze(source).coupling
    result = spa_graph.apply_plan(source, spa.plan_of(pruned))
    with torch.no_grad():
        again = written(spa.analyze(pruned, inputs).traced)
    error = _difference(again, result.model, inputs)
    report = spa.report_of(pruned)
    return Result(
        Cell(key),
        report["returned"],
        compared(labels(analysis.coupling), labels(theirs)),
        report["ratio"]["flops"],
        result.report["ratio"]["flops"],
        error,
        time.perf_counter() - start,
    )


def _difference(first: Any, second: Any, inputs: Sequence[Any]) -> float:
    """Of two ONNX models on random inputs, as a share of what is tolerated."""
    import onnx_ir as ir

    from spa_graph.errors import VerificationError
    from spa_graph.frontends.torch.calls import Call, randomised
    from spa_graph.runtime.sessions import open_session, run
    from spa_graph.runtime.verify import compare

    arrays = [leaf.numpy() for leaf in randomised(Call(tuple(inputs), {}), 0).args]
    found = []
    for model in (first, second):
        names = [str(value.name) for value in model.graph.inputs]
        session = open_session(ir.to_proto(model).SerializeToString(), plain=True)
        found.append(run(session, dict(zip(names, arrays, strict=True))))
    names = [str(value.name) for value in second.graph.outputs]
    agreement = compare(names, *found)
    if not agreement.shown:
        raise VerificationError("the outputs are constant, so that equality shows nothing")
    return agreement.share


# --- coupled channels -------------------------------------------------------------------------


def labels(coupling: Coupling) -> Labels:
    """The channel of each position of each weight; where uses differ, of the first one."""
    found: Labels = {}
    for use in coupling.relations.uses:
        for position, axis in enumerate(use.axes):
            channels = coupling.channel_of(axis)
            if channels is None:
                channels = np.full(coupling.size(axis), -1)
            found.setdefault((use.parameter, position), channels)
    return found


def compared(module: Labels, export: Labels) -> str:
    """How the coupled channels of an export compare with a module's."""
    places = [place for place in module if place in export]
    places = [place for place in places if len(module[place]) == len(export[place])]
    if not places:
        return "no weight in common"
    first, second = (np.concatenate([own[place] for place in places]) for own in (module, export))
    frozen, freed = ((first >= 0) & (second < 0)).any(), ((first < 0) & (second >= 0)).any()
    both = (first >= 0) & (second >= 0)
    pairs = np.unique(np.stack([first[both], second[both]]), axis=1)
    split, joined = (pairs.shape[1] > len(np.unique(own)) for own in pairs)
    said = {"freer": freed or split, "tighter": frozen or joined}
    return " and ".join(word for word, is_so in said.items() if is_so) or "same"


# --- the page ---------------------------------------------------------------------------------


def page(results: Sequence[Result], wanted: Sequence[str]) -> str:
    """The whole page."""
    done = [result for result in results if not result.failure]
    equal = sum(result.error <= 1 for result in done)
    alike = sum(result.flops == result.flops_export for result in done)
    known = {result.cell.key for result in results}
    days = sorted({result.day for result in results} - {""})
    lines = [
        "# One plan for a module and its ONNX export", "",
        f"Written by `python -m benchmarks.parity {' '.join(['FOLDER', *sys.argv[2:]])}`;",
        "what is done, and how, stands in that file.", "",
        f"Of {len(wanted)} networks {len(results)} ran, {len(done)} could be pruned both ways:",
        f"the outputs of {equal} are equal (an error of 1 is what the proof tolerates), and FLOPs",
        f"of {alike}. Coupled channels: {counted(result.groups for result in done)}, seen from the",
        "module. An export may be freer, where a module's own `forward` ties what a graph needn't.",
        "The plans that were made here fit their exports.", "", *NOTES,
        f"* Run from {days[0]} to {days[-1]}; other work ran beside, so seconds say little."
        if days else "* Other work ran beside, so seconds say little.",
        f"* {machine()}", f"* {versions()}", "",
        "| network | pruned to a | coupled channels | FLOPs | error | seconds |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += map(_line, sorted(results, key=lambda each: each.cell.key))
    missing = [key for key in wanted if key not in known]
    if missing:
        lines += ["", "Not run, for want of time: " + ", ".join(missing) + "."]
    return "\n".join((*lines, ""))


def counted(words: Iterable[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common()) or "none"


def _line(result: Result) -> str:
    if result.failure:
        said = re.sub(r"\x1b\[[0-9;]*m", "", result.failure).replace("|", "/")
        return f"| {result.cell.key} | {said} | | | | |"
    flops = f"{result.flops:.3f}"
    if result.flops != result.flops_export:
        flops += f" / {result.flops_export:.3f}"
    return (
        f"| {result.cell.key} | {result.returned} | {result.groups} | {flops} | "
        f"{result.error:.2g} | {result.seconds:.0f} |"
    )


# --- running ----------------------------------------------------------------------------------


def run(key: str, folder: Path, seconds: float, gigabytes: float) -> Result:
    """Measure in a process of its own."""
    limit = ["--memory", str(gigabytes)]
    command = [sys.executable, "-m", "benchmarks.parity", str(folder), "--cell", key, *limit]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return Result(Cell(key), failure=f"more than {seconds:g} seconds", day=today())
    try:
        found = json.loads(ended.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        last = (ended.stderr.splitlines() or [""])[-1]
        failure = f"ended with {ended.returncode}: {last[:200]}"
        return Result(Cell(key), failure=failure, day=today())
    return Result(**{**found, "cell": Cell(**found["cell"]), "day": today()})


def today() -> str:
    return date.today().isoformat()


def measured(key: str) -> Result:
    """What `measure` finds; a failure of any kind is a result."""
    try:
        return measure(key)
    except Exception as error:  # of any library
        return Result(
            Cell(key), failure=f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        )


def main() -> None:
    """Run what is missing; the page is written after each network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where results go")
    parser.add_argument("--suites", nargs="+", default=SUITES)
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="GLOB")
    parser.add_argument("--seconds", type=float, default=600, help="for each network")
    parser.add_argument("--memory", type=float, default=16, help="for each network, in GB")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.cell:
        resource.setrlimit(resource.RLIMIT_DATA, (int(given.memory * 1e9),) * 2)
        print(json.dumps(asdict(measured(given.cell))))
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    grid = Grid(given.folder / "parity.jsonl", Cell, Result)
    rows = [
        row for row in entries(given.suites) if any(fnmatchcase(row.name, g) for g in given.rows)
    ]
    if not rows:
        parser.error(f"--rows {' '.join(given.rows)}: no network of {' '.join(given.suites)}")
    keys = [row.key for row in sorted(rows, key=lambda each: each.weight)]
    for key in keys:
        if Cell(key) not in grid.known:
            grid.add(run(key, given.folder, given.seconds, given.memory))
            given.page.write_text(page(grid.results, keys))


if __name__ == "__main__":
    main()
