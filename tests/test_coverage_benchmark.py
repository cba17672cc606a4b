"""The runner of the coverage matrix: limits, resuming, and its page. No network is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import coverage, coverage_page
from benchmarks.coverage_limits import Child, Ended, Limits, group_memory
from benchmarks.coverage_workers import floors, general, prunable_share, short
from spa_graph import analyze
from spa_graph.models_zoo.demo import model_path

MEBIBYTE = 2**20
WORKER = """
import json, os, sys, time
column, row, folder, result, seconds = sys.argv[1:6]
with open(folder + "/log", "a") as log:
    log.write(column + "\\n")
name = row.partition("/")[2]
say = lambda **found: open(result, "w").write(json.dumps(found))
if name == "crash" and column == "ours":
    say(nodes=3)
    raise ValueError("no such thing")
if name == "hang" and column == "ours":
    say(nodes=4)
    time.sleep(60)
if name == "unexportable" and column == "export":
    say(status="not exportable", reason="it can't be")
else:
    say(status="ok", cores=sys.argv[6:])
"""


@dataclass(frozen=True)
class Row:
    """A stand-in for `catalogue.Entry`."""

    name: str
    weight: float = 1.0
    source: Any = None

    @property
    def key(self) -> str:
        return f"suite/{self.name}"


def follow(child: Child, seconds: float = 20.0) -> Ended:
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        used = group_memory([child.process.pid])[child.process.pid]
        if ended := child.poll(used):
            return ended
        time.sleep(0.02)
    child.end()
    raise AssertionError("it was never ended")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def python(tmp_path: Path, code: str, **limits: float) -> Child:
    chosen = Limits(**{"seconds": 20.0, "memory": 2**30, **limits})
    return Child([sys.executable, "-c", code], chosen, tmp_path / "log")


# --- limits ----------------------------------------------------------------------------------


def test_a_sleeper_and_its_children_are_ended(tmp_path: Path) -> None:
    nap = "import time; time.sleep(60)"
    code = f"""
import subprocess, sys, time
inner = subprocess.Popen([sys.executable, "-c", {nap!r}])
open({str(tmp_path / "pid")!r}, "w").write(str(inner.pid))
time.sleep(60)
"""
    child = python(tmp_path, code, seconds=2.0)
    ended = follow(child)
    assert (ended.status, ended.reason) == ("timeout", "more than 2 s")
    assert ended.seconds < 10
    inner = int((tmp_path / "pid").read_text())
    time.sleep(0.2)
    assert not alive(child.process.pid) and not alive(inner)


def test_a_memory_hog_is_ended(tmp_path: Path) -> None:
    code = """
import time
held = []
while True:
    held.append(bytearray(b"x") * (8 * 2**20))
    time.sleep(0.02)
"""
    child = python(tmp_path, code, memory=150 * MEBIBYTE)
    ended = follow(child)
    assert ended.status == "memory"
    assert 150 * MEBIBYTE < ended.memory < 600 * MEBIBYTE
    assert not alive(child.process.pid)


def test_memory_of_children_counts(tmp_path: Path) -> None:
    hog = "x = bytearray(b'x') * (200 * 2**20); import time; time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hog!r}])"
    assert follow(python(tmp_path, code, memory=150 * MEBIBYTE)).status == "memory"


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("print('done')", "", ""),
        ("raise ValueError('no such thing')", "error", "ValueError: no such thing"),
        ("import sys; sys.exit(3)", "error", "exit 3"),
        ("import os; os.abort()", "error", "died of SIGABRT"),
    ],
)
def test_how_a_process_ended(tmp_path: Path, code: str, status: str, reason: str) -> None:
    ended = follow(python(tmp_path, code))
    assert (ended.status, ended.reason) == (status, reason)


# --- running ---------------------------------------------------------------------------------


def matrix(tmp_path: Path, names: Sequence[str], **options: Any) -> coverage.Matrix:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    results = coverage.Results(tmp_path / "results.jsonl")
    again = options.pop("again", ())
    tasks = coverage.plan(map(Row, names), coverage.COLUMNS, results, again)
    settings = coverage.Settings(
        jobs=2, worker=(sys.executable, str(worker)), **{"seconds": 3.0, "keep": True, **options}
    )
    return coverage.Matrix(tasks, results, tmp_path / "cache", settings)


def cells(tmp_path: Path) -> dict[tuple[str, str], coverage.Record]:
    return coverage.Results(tmp_path / "results.jsonl").cells


def test_every_cell_has_a_status_whatever_happens(tmp_path: Path) -> None:
    matrix(tmp_path, ["fine", "crash", "hang", "unexportable"]).run()
    found = {
        (row.partition("/")[2], c): cell["status"] for (row, c), cell in cells(tmp_path).items()
    }
    assert found == {
        **{("fine", column): "ok" for column in coverage.COLUMNS},
        **{("crash", column): "ok" for column in coverage.COLUMNS},
        **{("hang", column): "ok" for column in coverage.COLUMNS},
        ("crash", "ours"): "error",
        ("hang", "ours"): "timeout",
        ("unexportable", "export"): "not exportable",
        ("unexportable", "ours"): "not applicable",
        ("unexportable", "onnxsim"): "not applicable",
        ("unexportable", "torch-pruning"): "ok",
    }
    assert set(found.values()) <= set(coverage.STATUSES)


def test_what_was_known_before_a_crash_is_kept(tmp_path: Path) -> None:
    matrix(tmp_path, ["crash", "hang"]).run()
    crash, hang = cells(tmp_path)["suite/crash", "ours"], cells(tmp_path)["suite/hang", "ours"]
    assert crash["reason"] == "ValueError: no such thing" and crash["nodes"] == 3
    assert hang["reason"] == "more than 3 s" and hang["nodes"] == 4


def test_export_comes_first_and_its_file_is_deleted(tmp_path: Path) -> None:
    run = matrix(tmp_path, ["fine"])
    run.run()
    log = (tmp_path / "cache" / "suite" / "fine" / "log").read_text().split()
    assert log.index("export") < min(log.index("ours"), log.index("onnxsim"))
    assert sorted(log) == sorted(coverage.COLUMNS)
    matrix(tmp_path, ["other"], keep=False).run()
    assert not (tmp_path / "cache" / "suite" / "other").exists()


def test_done_cells_are_skipped(tmp_path: Path) -> None:
    matrix(tmp_path, ["fine", "crash"]).run()
    assert not matrix(tmp_path, ["fine", "crash"]).waiting
    assert {task.row for task in matrix(tmp_path, ["fine", "new"]).waiting} == {"suite/new"}
    once_more = matrix(tmp_path, ["fine", "crash"], again=["error"]).waiting
    assert [(task.row, task.column) for task in once_more] == [
        ("suite/crash", "export"),  # the file is needed again
        ("suite/crash", "ours"),
    ]
    once_more = matrix(tmp_path, ["fine", "crash"], again=["fin*"]).waiting
    assert {task.row for task in once_more} == {"suite/fine"} and len(once_more) == 4


def test_kept_exports_are_used_again(tmp_path: Path) -> None:
    results = coverage.Results(tmp_path / "results.jsonl")
    results.append({"row": "suite/fine", "column": "export", "status": "ok"})
    folder = tmp_path / "cache" / "suite" / "fine"
    folder.mkdir(parents=True)
    (folder / coverage.EXPORTED).touch()
    for cache, expected in ((tmp_path / "cache", ["ours"]), (None, ["export", "ours"])):
        tasks = coverage.plan([Row("fine")], ["export", "ours"], results, (), cache)
        assert [task.column for task in tasks] == expected


def test_what_an_export_kept_from_running_runs_with_it(tmp_path: Path) -> None:
    matrix(tmp_path, ["unexportable"]).run()
    assert not matrix(tmp_path, ["unexportable"]).waiting
    once_more = matrix(tmp_path, ["unexportable"], again=["not exportable"]).waiting
    assert [task.column for task in once_more] == ["export", "ours", "onnxsim"]
    (tmp_path / "results.jsonl").write_text(
        json.dumps({"row": "suite/x", "column": "export", "status": "timeout"}) + "\n"
    )
    assert [task.column for task in matrix(tmp_path, ["x"]).waiting] == ["torch-pruning"]


def test_a_half_written_line_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    results = coverage.Results(path)
    results.append({"row": "suite/a", "column": "ours", "status": "ok"})
    with path.open("a") as file:
        file.write('{"row": "suite/b", "col')
    results = coverage.Results(path)
    assert set(results.cells) == {("suite/a", "ours")}
    results.append({"row": "suite/a", "column": "ours", "status": "error"})
    assert coverage.Results(path).cells["suite/a", "ours"]["status"] == "error"


def test_time_is_up(tmp_path: Path) -> None:
    run = matrix(tmp_path, ["hang"], seconds=50.0, stop_after=2.0)
    run.run()
    pids = [each.child.process.pid for each in run.running]
    assert len(pids) == 1 and not alive(pids[0])
    assert ("suite/hang", "ours") not in cells(tmp_path)
    assert cells(tmp_path)["suite/hang", "export"]["status"] == "ok"


def test_an_interrupt_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = matrix(tmp_path, ["hang"], seconds=50.0)
    monkeypatch.setattr(run, "_tell", lambda *_: None)
    real, polls = run._poll, []

    def poll() -> list[coverage.Record]:
        polls.append(len(run.running))
        if len(polls) > 40:
            raise KeyboardInterrupt
        return real()

    monkeypatch.setattr(run, "_poll", poll)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.running and not any(alive(each.child.process.pid) for each in run.running)
    assert all(json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines())


def test_heavy_rows_come_first_and_files_have_no_torch_network(tmp_path: Path) -> None:
    results = coverage.Results(tmp_path / "results.jsonl")
    rows = [Row("light", 0.5), Row("heavy", 20.0), Row("file", 1.0, source=Path)]
    tasks = coverage.plan(rows, coverage.COLUMNS, results)
    assert [task.row for task in tasks][:4] == ["suite/heavy"] * 4
    assert [task.factor for task in tasks][::4] == [4.0, 1.0, 1.0]
    file = [task.column for task in tasks if task.row == "suite/file"]
    assert file == ["export", "ours", "onnxsim"]


def test_shards_share_all_rows() -> None:
    shares = [coverage.shard(range(10), f"{i}/3") for i in (1, 2, 3)]
    assert sorted(shares[0] + shares[1] + shares[2]) == list(range(10))
    assert shares[0] == [0, 3, 6, 9]


def test_cores_are_apart_where_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert coverage._cores(5) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13, 14]]
    assert coverage._cores(32)[16] == [0]


# --- command line ----------------------------------------------------------------------------


def test_a_run_is_continued_as_it_was_begun(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    options = coverage.parse(["run", "--results", str(path), "--jobs", "7", "--suite", "timm"])
    saved = {name: getattr(options, name) for name in coverage.SAVED}
    coverage.Results(path).append({"run": {"options": saved}})
    resumed = coverage.parse(["resume", "--results", str(path), "--stop-after", "9"])
    resumed = coverage.remembered(resumed, coverage.Results(path))
    assert (resumed.jobs, resumed.suite, resumed.stop_after) == (7, ["timm"], 9.0)
    assert resumed.cache is None and resumed.again == []


def test_nothing_to_continue(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no run to continue"):
        coverage.main(["resume", "--results", str(tmp_path / "none.jsonl")])


def test_the_real_command_on_files(tmp_path: Path) -> None:
    """One row of the onnx suite through all of it, but for the peer, which isn't installed."""
    command = [sys.executable, "-m", "benchmarks.coverage"]
    run = [*command, "run", "--results", "r.jsonl", "--jobs", "1", "--columns", "ours"]
    run += ["--suite", "onnx", "--only", "light_squeezenet_stored"]
    root = str(coverage.REPOSITORY)
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = coverage.Results(tmp_path / "r.jsonl")
    ours = results.cells["onnx/light_squeezenet_stored", "ours"]
    assert ours["status"] == "ok" and ours["valid"] and ours["ratio"] <= 0.5
    assert ours["error"] <= ours["tolerated"] and 0 < ours["smallest"] < 0.5
    render = [*command, "render", "--results", "r.jsonl", "--output", "page.md"]
    subprocess.run(render, cwd=tmp_path, env=environment, check=True)
    assert "| light_squeezenet_stored | file |" in (tmp_path / "page.md").read_text()


# --- workers ---------------------------------------------------------------------------------


def test_prunable_share_counts_elements_once() -> None:
    analysis = analyze(model_path())
    shapes = {name: p.shape for name, p in analysis.graph.parameters.items()}
    removable = {name: np.zeros(shape, bool) for name, shape in shapes.items()}
    for group in analysis.groups:
        for member in group.members:
            mask = np.moveaxis(removable[member.parameter], member.axis, 0)
            mask[member.index.ravel()] = True
    from spa_graph.passes.cost import counts_as_weight

    weights = [n for n, p in analysis.graph.parameters.items() if counts_as_weight(p)]
    expected = sum(removable[n].sum() for n in weights) / sum(removable[n].size for n in weights)
    assert 0 < expected < 1
    assert prunable_share(analysis) == pytest.approx(expected)


def test_floors_lie_above_the_smallest() -> None:
    assert all(0.7 < target < 1 for target in floors(0.7)) and len(floors(0.7)) == 3
    assert floors(1.0) == []


def test_messages() -> None:
    assert general("Conv `conv_12`: 64 of 128") == "Conv `…`: N of N"
    assert short(ValueError("a\n  b")) == "a b"
    assert short(KeyError("x")) == "KeyError: 'x'"
    assert len(short(ValueError("x" * 999))) == 300


# --- page ------------------------------------------------------------------------------------


def sample() -> dict[tuple[str, str], coverage.Record]:
    export = {"status": "ok", "reason": "", "exporter": "dynamo, dynamic batch", "bytes": 100e6}
    ours = {"status": "ok", "reason": "", "nodes": 40, "groups": 7, "prunable": 0.987,
            "smallest": 0.01, "ratio": 0.4991, "error": 3e-7, "latency": 0.6, "memory": 500e6,
            "analysis_seconds": 0.05, "seconds": 0.7, "frozen": {}}  # fmt: skip
    floor = {**ours, "status": "floor", "ratio": 0.71, "reason": "flops 0.5 can't | be reached",
             "analysis_seconds": 12.0, "memory": 1e6, "frozen": {"Foo": 2},
             "reasons": {"operators": {"Foo: no rule": 2},
                         "axes": {"is graph output `…`": 9}}}  # fmt: skip
    peer = {"status": "ok", "reason": "", "ratio": 0.5, "seconds": 3.0}
    broken = {"status": "broken", "reason": "Name:'conv3' wants 64 channels", "seconds": 1.0}
    lost = {"status": "not exportable", "reason": "dynamo: no"}
    rows = {
        "torchvision/resnet18": (export, ours, peer, broken),
        "torchvision/hard": (
            export,
            floor,
            {"status": "timeout", "reason": "more than 90 s"},
            peer,
        ),
        "timm/odd": (lost, {"status": "not applicable", "reason": ""}, broken, {"status": "ok"}),
    }
    found = {}
    for row, four in rows.items():
        for column, cell in zip(coverage.COLUMNS, four, strict=True):
            found[row, column] = {"row": row, "column": column, "reason": "", **cell}
    return found


def test_the_page() -> None:
    run = {**coverage.machine(), "options": {"jobs": 2, "time_limit": 90.0, "memory_limit": 12.0}}
    text = coverage_page.page(sample(), [run])
    lines = text.splitlines()
    summary = next(line for line in lines if line.startswith("| torchvision |"))
    assert summary.startswith("| torchvision | 2 | 2 | 2 | 0 | 0 | **50.0 %** | 50.0 % of 2 |")
    resnet = next(line for line in lines if line.startswith("| resnet18 |"))
    assert resnet == (
        "| resnet18 | dynamo + | 40 | 7 | 0.99 | 0.010 | ok | 0.499 | 3e-07 | 0.60 | 0.05 | 0.7 "
        "| 5.0 | 0 | ok 0.50 3 s | broken 1 s |"
    )
    assert "* **hard** (floor): flops 0.5 can't / be reached" in lines
    assert "    * frozen operators: Foo: no rule (2)" in lines
    assert "is graph output" not in text  # needs no explanation
    assert "* **odd** (not exportable): dynamo: no" in lines
    assert "Analyses of more than 10 s: torchvision/hard (12.0 s)." in lines
    assert any("in memory: torchvision/resnet18 (5.0); of 0 small" in line for line in lines)
    assert "ONNX Runtime alone" not in text
    assert "python " in text and "90 s" in text


def test_memory_of_small_files_is_compared_with_that_of_a_session() -> None:
    cells = sample()
    for name, bytes_, used in (("resnet18", 10e6, 50e6), ("hard", 20e6, 70e6)):
        cells[f"torchvision/{name}", "export"]["bytes"] = bytes_
        cells[f"torchvision/{name}", "ours"].update(
            memory=used, session_memory=20e6, analysis_memory=35e6
        )
    run = {**coverage.machine(), "options": {"jobs": 2, "time_limit": 90.0, "memory_limit": 12.0}}
    text = coverage_page.page(cells, [run])
    assert "times their size in memory: none; of 2 smaller ones 2 did" in text
    assert "alone, which runs nothing, did for 1 of 2, the largest of 10.0 MB." in text
    assert "the most was 3.5 times as much, and more than 3 times: torchvision/hard (3.5)." in text


def test_the_page_tells_what_was_run_again() -> None:
    first = {**coverage.machine(), "options": {"jobs": 2, "time_limit": 90.0, "memory_limit": 12.0}}
    again = {**first, "date": "2099-01-02", "versions": {**first["versions"], "onnx": "99.0"}}
    cells = sample()
    cells["torchvision/resnet18", "ours"] |= {
        "date": "2099-01-02", "frozen": {"Bar": 1}, "reasons": {"operators": {"Bar: no rule": 1}}
    }  # fmt: skip
    lines = coverage_page.page(cells, [first, again]).splitlines()
    assert lines[2].startswith(f"Written by `benchmarks/coverage.py` ({first['date']})")
    assert "Run again on 2099-01-02, with onnx 99.0: torchvision/resnet18." in lines
    assert "* **resnet18**: Bar: no rule (1)" in lines


def test_the_page_tells_what_a_row_notes() -> None:
    cells = sample()
    cells["torchvision/resnet18", "export"] |= {"note": "it is small"}
    cells["torchvision/hard", "export"] = {
        **cells["torchvision/hard", "export"], "note": "torchvision.hard"
    }  # fmt: skip
    lines = coverage_page.page(cells, []).splitlines()
    assert not any("torchvision.hard" in line for line in lines)
    assert lines[lines.index("### torchvision: notes") + 2] == "* **resnet18**: it is small"


def test_every_table_is_whole() -> None:
    lines = coverage_page.page(sample(), []).splitlines()
    tables = [line for line in lines if line.startswith("|")]
    widths = {line.count("|") for line in tables}
    assert widths == {coverage_page.HEAD.count("|"), 10}
