"""The coverage matrix: every architecture, pruned without hints, by us and by others.

    pip install -e '.[dev,torch]' torchvision timm transformers torch-pruning onnxsim
    python -m benchmarks.coverage run --results coverage.jsonl --cache FOLDER --jobs 14
    python -m benchmarks.coverage resume --results coverage.jsonl      # as it was begun
    python -m benchmarks.coverage render --results coverage.jsonl      # -> docs/coverage.md

A row is a network (`spa_graph.models_zoo.catalogue`), a column is a process of its own with limits
(`coverage_workers`): export, ours, torch-pruning, onnxsim. A result is one line of JSON, appended
as soon as it is known; `run` skips what is there, so that it can be stopped at any time, and
continued. `--again` runs rows of a name or a status once more; the last line counts.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.coverage_limits import Child, Ended, Limits, available_memory, group_memory

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "coverage.md"
COLUMNS = ("export", "ours", "torch-pruning", "onnxsim")
NEED_EXPORT = ("ours", "onnxsim")
EXPORTED = "model.onnx"  # in the folder of a row
STATUSES = {
    "ok": "done, and what came out is valid",
    "floor": "the budget can't be reached; pruned to what can be",
    "nothing": "nothing could be pruned",
    "refused": "left alone, with a message that says why",
    "broken": "what came out is not a network that does the same job",
    "not exportable": "no exporter of torch writes a file that ONNX Runtime runs",
    "not applicable": "there is nothing to run this column on",
    "skipped": "the network doesn't exist in this version of its library",
    "timeout": "more than the time limit",
    "memory": "more than the memory limit",
    "error": "a crash",
}
PACKAGES = ("torch", "torchvision", "timm", "transformers", "onnx", "onnx-ir",
            "onnxscript", "onnxruntime", "numpy", "scipy", "torch-pruning", "onnxsim")  # fmt: skip
WORKER = (sys.executable, "-m", "benchmarks.coverage_workers")
GIB = 2**30
POLL = 0.1  # seconds
Record = dict[str, Any]


class Row(Protocol):
    """What is needed of a `catalogue.Entry`."""

    @property
    def key(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def source(self) -> Any: ...


# --- results ---------------------------------------------------------------------------------


class Results:
    """A file of JSON lines; of two lines for the same cell the later counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[tuple[str, str], Record] = {}
        self.runs: list[Record] = []
        if path.exists():
            self._read()

    def _read(self) -> None:
        text = self.path.read_text()
        for line in text.splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # the last one, if a run was killed
                self._take(json.loads(line))
        if text and not text.endswith("\n"):
            with self.path.open("a") as file:
                file.write("\n")

    def _take(self, record: Record) -> None:
        if "run" in record:
            self.runs.append(record["run"])
        else:
            self.cells[record["row"], record["column"]] = record

    def append(self, record: Record) -> None:
        """Write a line at once."""
        self._take(record)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def done(self, row: str, column: str, again: Sequence[str] = ()) -> bool:
        """Whether a cell is known, and not wanted once more (by a glob or a status)."""
        record = self.cells.get((row, column))
        if record is None:
            return False
        names = (row, row.rpartition("/")[2], f"{row}/{column}", record["status"])
        return not any(fnmatchcase(name, pattern) for name in names for pattern in again)


def machine() -> Record:
    """The machine and the versions that decide about the results."""
    import spa_graph

    versions = {"python": platform.python_version(), "spa-prune": spa_graph.__version__}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": versions,
        "date": today(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


# --- what to run -----------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Task:
    """One cell to be computed; sorted as it should be started."""

    order: tuple[float, str, int]
    row: str = field(compare=False)
    column: str = field(compare=False)
    factor: float = field(compare=False, default=1.0)

    @property
    def needs_export(self) -> bool:
        return self.column in NEED_EXPORT


def plan(
    rows: Iterable[Row],
    columns: Sequence[str],
    results: Results,
    again: Sequence[str] = (),
    cache: Path | None = None,
) -> list[Task]:
    """The tasks that are not done, heavy rows first; an export where a column needs its file."""
    tasks = []
    for row in rows:
        factor = min(max(row.weight / 2, 1.0), 4.0)
        tasks += [
            Task((-row.weight, row.key, COLUMNS.index(column)), row.key, column, factor)
            for column in _missing(row, columns, results, again, cache)
        ]
    return sorted(tasks)


def _missing(
    row: Row, columns: Sequence[str], results: Results, again: Sequence[str], cache: Path | None
) -> list[str]:
    possible = [c for c in columns if c != "torch-pruning" or row.source is None]
    if not results.done(row.key, "export", again):
        # What couldn't run without the file can, perhaps, now.
        again = [*again, "not applicable"]
    missing = [c for c in possible if not results.done(row.key, c, again)]
    if "export" in missing or not set(NEED_EXPORT) & set(missing):
        return missing
    if results.cells[row.key, "export"]["status"] != "ok":
        return [c for c in missing if c not in NEED_EXPORT]
    kept = cache is not None and (cache / row.key / EXPORTED).exists()
    return missing if kept else ["export", *missing]


def shard(rows: Sequence[Any], which: str) -> list[Any]:
    """Every n-th row: ``2/3`` is the second of three shares."""
    number, _, count = which.partition("/")
    return list(rows[int(number) - 1 :: int(count)])


# --- running ---------------------------------------------------------------------------------


@dataclass
class Settings:
    """How to run."""

    jobs: int = 1
    seconds: float = 90.0
    memory: float = 12 * GIB
    keep: bool = False
    stop_after: float = float("inf")
    worker: Sequence[str] = WORKER


@dataclass
class Running:
    """A task with its process and the cores that it has."""

    task: Task
    child: Child
    slot: int
    result: Path


class Matrix:
    """Runs tasks, several at a time, and appends what they say."""

    def __init__(
        self, tasks: list[Task], results: Results, cache: Path, settings: Settings
    ) -> None:
        self.results, self.cache, self.settings = results, cache, settings
        self.waiting = sorted(tasks)
        self.running: list[Running] = []
        self.exporting = {task.row for task in tasks if task.column == "export"}
        self.failed: dict[str, Record] = {}  # exports of this run that failed, by row
        self.left = Counter(task.row for task in tasks)
        self.cores = _cores(settings.jobs)
        self.start = time.monotonic()

    def run(self, progress: Progress | None = None) -> None:
        """Run until nothing is left, or time is up; whatever happens no process is left behind."""
        bar = progress and progress.add_task("cells", total=len(self.waiting))
        try:
            while self.waiting or self.running:
                if time.monotonic() - self.start > self.settings.stop_after:
                    break
                self._start_some()
                for record in self._poll():
                    self._tell(record, progress, bar)
                time.sleep(POLL)
        finally:
            for each in self.running:
                each.child.end()

    def _start_some(self) -> None:
        free = set(range(self.settings.jobs)) - {each.slot for each in self.running}
        for slot in sorted(free):
            if self.running and available_memory() < self.settings.memory:
                return
            task = next((task for task in self.waiting if self._ready(task)), None)
            if task is None:
                return
            self.waiting.remove(task)
            self.running.append(self._start(task, slot))

    def _ready(self, task: Task) -> bool:
        return not (task.needs_export and task.row in self.exporting)

    def _start(self, task: Task, slot: int) -> Running:
        folder = self._folder(task.row)
        folder.mkdir(parents=True, exist_ok=True)
        result = folder / f"{task.column}.json"
        result.unlink(missing_ok=True)
        # An export has several attempts, between which it gives up by itself.
        exports = task.column == "export"
        seconds = self.settings.seconds * task.factor * (2 if exports else 1)
        cores = self.cores[slot]
        arguments = [task.column, task.row, str(folder), str(result), str(seconds)]
        child = Child(
            [*self.settings.worker, *arguments, *map(str, cores)],
            Limits(seconds + (10 if exports else 0), self.settings.memory),
            folder / f"{task.column}.log",
            _environment(len(cores)),
        )
        return Running(task, child, slot, result)

    def _poll(self) -> list[Record]:
        used = group_memory(each.child.process.pid for each in self.running)
        records = []
        for each in list(self.running):
            ended = each.child.poll(used[each.child.process.pid])
            if ended is not None:
                self.running.remove(each)
                records += self._finish(each, ended)
        return records

    def _finish(self, each: Running, ended: Ended) -> list[Record]:
        """The record of a task, and those of the columns that can't run without it."""
        task = each.task
        records = [record(task, ended, each.result)]
        if task.column == "export":
            self.exporting.discard(task.row)
            if records[0]["status"] != "ok":
                records += self._without_export(task.row)
        for each_record in records:
            self.results.append(each_record)
        self.left[task.row] -= len(records)
        for pruned in self._folder(task.row).glob(f"pruned.{task.column}.*"):
            pruned.unlink()  # large, and nobody looks at it again
        if not self.left[task.row] and not self.settings.keep:
            shutil.rmtree(self._folder(task.row), ignore_errors=True)
        return records

    def _without_export(self, row: str) -> list[Record]:
        lost = [task for task in self.waiting if task.row == row and task.needs_export]
        self.waiting = [task for task in self.waiting if task not in lost]
        known = {"status": "not applicable", "reason": "there is no ONNX file"} | measured_at()
        return [{"row": row, "column": task.column} | known for task in lost]

    def _folder(self, row: str) -> Path:
        return self.cache / row

    def _tell(self, done: Record, progress: Progress | None, bar: TaskID | None) -> None:
        reason = f": {done['reason']}" if done["reason"] else ""
        wall = f" {done['wall']:.0f} s" if "wall" in done else ""
        line = f"{done['row']} {done['column']}: {done['status']}{wall}{reason}"
        if progress is None:
            print(line[:200], flush=True)
            return
        assert bar is not None
        progress.console.print(line[:200], markup=False, highlight=False)
        progress.advance(bar)


def record(task: Task, ended: Ended, result: Path) -> Record:
    """What a worker said, unless it died; then how, and what it had said before."""
    found: Record = {}
    if result.exists():
        found = json.loads(result.read_text())
    if ended.status:
        found |= {"status": ended.status, "reason": ended.reason}
    elif "status" not in found:
        found |= {"status": "error", "reason": "it ended without a result"}
    known = {"row": task.row, "column": task.column, "status": "", "reason": ""}
    measured = {"wall": round(ended.seconds, 2), "peak": ended.memory}
    return known | found | measured | measured_at()


def measured_at() -> Record:
    """When a cell was measured, and of which commit."""
    return {"date": today(), "commit": commit()}


def today() -> str:
    """The date, as the page prints it."""
    return datetime.date.today().isoformat()


@cache
def commit() -> str:
    """The commit that is measured, shortened; nothing outside of a repository."""
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _cores(jobs: int) -> list[list[int]]:
    """Cores for each of the jobs, so that they don't share any where there are enough."""
    own = sorted(os.sched_getaffinity(0))
    each = max(1, len(own) // jobs)
    return [[own[(job * each + i) % len(own)] for i in range(each)] for job in range(jobs)]


def _environment(threads: int) -> dict[str, str]:
    names = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
    limits = {f"{name}_NUM_THREADS": str(threads) for name in names}
    quiet = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **limits, **quiet, "PYTHONUNBUFFERED": "1"}


# --- command line ----------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_ in (("run", "compute what is missing"), ("resume", "as the last run was")):
        command = commands.add_parser(name, help=help_)
        command.add_argument("--results", type=Path, required=True, help="JSON lines")
        command.add_argument("--stop-after", type=float, default=float("inf"), metavar="SECONDS")
    run = commands.choices["run"]
    run.add_argument("--cache", type=Path, help="exported networks (default: a temporary folder)")
    run.add_argument("--keep", action="store_true", help="keep them")
    run.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    run.add_argument("--suite", nargs="+", default=None, help="default: all")
    run.add_argument("--only", default="*", metavar="GLOB", help="of names or suite/name")
    run.add_argument("--columns", default=",".join(COLUMNS), help="of " + ",".join(COLUMNS))
    run.add_argument("--time-limit", type=float, default=90.0, help="seconds; heavy rows get more")
    run.add_argument("--memory-limit", type=float, default=12.0, help="GiB of a process")
    run.add_argument("--shard", default="1/1", metavar="I/N", help="the I-th of N shares of rows")
    run.add_argument("--again", nargs="+", default=[], metavar="GLOB|STATUS", help="run once more")
    render = commands.add_parser("render", help="write the page")
    render.add_argument("--results", type=Path, nargs="+", required=True)
    render.add_argument("--output", type=Path, default=PAGE)
    return parser.parse_args(arguments)


SAVED = ("cache", "keep", "jobs", "suite", "only", "columns", "time_limit", "memory_limit", "shard")


def remembered(options: argparse.Namespace, results: Results) -> argparse.Namespace:
    """The options of the last run of a results file."""
    if not results.runs:
        raise SystemExit(f"{options.results} has no run to continue")
    saved = results.runs[-1]["options"]
    cache = Path(saved["cache"]) if saved["cache"] else None
    return argparse.Namespace(**{**saved, **vars(options), "cache": cache, "again": []})


def select(options: argparse.Namespace) -> list[Any]:
    """The rows that are asked for; a suite whose library is missing is left out, with a word."""
    from spa_graph.models_zoo import catalogue

    found: list[Any] = []
    for suite in options.suite or catalogue.SUITES:
        try:
            found += catalogue.entries([suite], options.only)
        except ImportError as error:
            print(f"suite {suite} is left out: {error}", file=sys.stderr, flush=True)
    return shard(found, options.shard)


def compute(options: argparse.Namespace) -> int:
    """Run what is missing; 0 if nothing is left to do."""
    results = Results(options.results)
    if options.command == "resume":
        options = remembered(options, results)
    columns = options.columns.split(",")
    unknown = set(columns) - set(COLUMNS)
    if unknown:
        raise SystemExit(f"no such column: {', '.join(sorted(unknown))}")
    columns = [name for name in COLUMNS if name in {*columns, "export"}]
    tasks = plan(select(options), columns, results, options.again, options.cache)
    saved = {name: getattr(options, name) for name in SAVED}
    saved["cache"] = str(options.cache) if options.cache else None
    results.append({"run": {**machine(), "options": saved}})
    settings = Settings(
        options.jobs,
        options.time_limit,
        options.memory_limit * GIB,
        options.keep,
        options.stop_after,
    )
    with tempfile.TemporaryDirectory() as scratch:
        matrix = Matrix(tasks, results, options.cache or Path(scratch), settings)
        try:
            with_progress(matrix)
        except KeyboardInterrupt:
            print("stopped; `resume` continues", file=sys.stderr)
    tell(results, len(matrix.waiting) + len(matrix.running))
    return int(bool(matrix.waiting or matrix.running))


def with_progress(matrix: Matrix) -> None:
    """Run with a bar on a terminal, else with a line per cell."""
    from rich import progress

    if not sys.stdout.isatty():
        matrix.run()
        return
    columns = (*progress.Progress.get_default_columns(), progress.MofNCompleteColumn())
    with progress.Progress(*columns) as shown:
        matrix.run(shown)


def tell(results: Results, left: int) -> None:
    """Count statuses."""
    for column in COLUMNS:
        counts = Counter(c["status"] for (_, own), c in results.cells.items() if own == column)
        print(f"{column:14}", ", ".join(f"{n} {status}" for status, n in counts.most_common()))
    if left:
        print(f"{left} cells are left; the same command continues")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command."""
    options = parse(arguments)
    if options.command != "render":
        return compute(options)
    from benchmarks.coverage_page import page

    merged = Results(options.results[0])
    for path in options.results[1:]:
        other = Results(path)
        merged.cells |= other.cells
        merged.runs += other.runs
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page(merged.cells, merged.runs), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
