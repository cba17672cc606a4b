"""`spa-prune sweep`: many budgets, several criteria, in a folder that it goes on with."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest

import spa_graph
from spa_graph.cli.parameters import Ratios
from spa_graph.errors import OptionError
from spa_graph.studies.sweep import frontier, sweep
from spa_graph.studies.sweep.engine import Backend
from spa_graph.studies.sweep.folder import Point
from spa_graph.studies.sweep.run import shares
from tests.conftest import Command, assert_refused, listing

INTERRUPTIBLE = (  # shells let background jobs ignore it, and so may what runs the tests
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from spa_graph.cli import main; main()"
)
X = np.random.default_rng(3).normal(size=(48, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def metrics(chain: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A function of the user's own, in the current folder: minus the number of weights."""
    text = (
        "import onnx\n"
        "def size(path):\n"
        "    weights = onnx.load(path).graph.initializer\n"
        "    return -sum(w.ByteSize() for w in weights)\n"
        "def broken(path):\n"
        "    raise KeyError('labels')\n"
        "def leaving(path):\n"
        "    raise SystemExit(3)\n"
        "def picky(path):\n"
        "    if 'flops-0.5' in path:\n"
        "        raise ValueError('too small')\n"
        "    return size(path)\n"
    )
    chain.with_name("sweep_metrics.py").write_text(text)
    monkeypatch.chdir(chain.parent)
    return "sweep_metrics:size"


def run(chain: Path, ratios: tuple[float, ...] = (0.8, 0.5), **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"calibrate": os_path(chain), "jobs": 1, "criteria": ("l1", "obspa")}
    return sweep(chain, ratios, output=chain.with_name("out"), **given | options)


def os_path(chain: Path) -> str:
    path = chain.with_name("x.npz")
    np.savez(path, x=X)
    return str(path)


@pytest.mark.parametrize(
    ("text", "ratios"),
    [
        ("0.9:0.3:0.2", (0.9, 0.7, 0.5, 0.3)),
        ("0.3:0.5:0.1", (0.3, 0.4, 0.5)),
        ("0.9:0.35:0.2", (0.9, 0.7, 0.5)),
        ("0.5", (0.5,)),
        ("0.9,0.5", (0.9, 0.5)),
    ],
)
def test_budgets(text: str, ratios: tuple[float, ...]) -> None:
    assert Ratios().convert(text, None, None) == ratios


@pytest.mark.parametrize("text", ["0.9:0.3", "a", "0.9:0.3:0", "0.9,0.5:0.1", "0.9:0.3:-0.1", ""])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not of the form"):
        Ratios().convert(text, None, None)


def test_memory_is_swept_too(process: Command, chain: Path, metrics: str) -> None:
    budgets = ("--memory", "0.8,0.5", "--eval", metrics, "--jobs", 1, "--latency-seconds", 0)
    ran = process("sweep", chain, *budgets, "--json", "--quiet")
    assert ran.code == 0, ran.err
    points = json.loads(ran.out)["points"]
    assert [(p["quantity"], p["asked"]) for p in points] == [("memory", 0.8), ("memory", 0.5)]
    before = spa_graph.analyze(chain).cost
    for point in points:
        after = spa_graph.analyze(chain.with_name("chain.sweep") / point["file"]).cost
        whole = before.cost("memory", before.full)
        assert after.cost("memory", after.full) <= point["asked"] * whole


def test_the_frontier() -> None:
    places = [(0.9, 0.8), (0.5, 0.7), (0.6, 0.7), (0.4, 0.1), (0.4, 0.1), (0.3, None)]
    points = [{"flops": flops, "metric": metric} for flops, metric in places]
    assert frontier(points) == [True, True, False, True, True, False]
    by_time = [{"flops": 0.5, "time": 0.7, "metric": 0.8}, {"flops": 0.6, "time": 0.6, "metric": 1}]
    assert frontier(by_time, "latency") == [False, True]
    errors = [{"flops": 0.5, "error": 0.1}, {"flops": 0.6, "error": 0.2}, {"failure": "no"}]
    assert frontier(errors) == [True, False, False]


def test_what_workers_share() -> None:
    points = [Point(name, "flops", ratio) for name in ("l1", "l2") for ratio in (0.8, 0.6, 0.4)]
    assert shares(points, 2) == [points[:3], points[3:]]
    dealt = shares(points, 4)
    assert [len(share) for share in dealt] == [2, 1, 2, 1]
    assert sorted(point for share in dealt for point in share) == sorted(points)
    assert all(len({point.criterion for point in share}) == 1 for share in dealt)


def test_every_point_has_its_network(chain: Path, metrics: str) -> None:
    found = run(chain, evaluation=metrics, latency_seconds=0.05)
    folder = chain.with_name("out")
    assert [(p["criterion"], p["asked"]) for p in found["points"]] == [
        ("l1", 0.8), ("l1", 0.5), ("obspa", 0.8), ("obspa", 0.5),
    ]  # fmt: skip
    for point in found["points"]:
        model = onnx.load(folder / point["file"])
        onnx.checker.check_model(model)
        assert point["flops"] <= point["asked"]
        assert point["metric"] == -sum(w.ByteSize() for w in model.graph.initializer)
        assert point["bytes"] == (folder / point["file"]).stat().st_size
        assert point["error"] > 0
        assert point["time"] > 0
    assert found["whole"]["metric"] < min(point["metric"] for point in found["points"])
    assert any(point["frontier"] for point in found["points"])
    with (folder / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [point["file"] for point in found["points"]]
    assert float(rows[0]["flops"]) == found["points"][0]["flops"]


def test_it_goes_on_where_it_stopped(chain: Path) -> None:
    folder = chain.with_name("out")
    run(chain, criteria=("l1",))
    before = listing(folder)
    (folder / "l1-flops-0.5.json").unlink()  # as if it had been stopped within this point
    found = run(chain, ratios=(0.8, 0.65, 0.5))
    after = listing(folder)
    assert [(p["criterion"], p["asked"]) for p in found["points"]] == [
        ("l1", 0.8), ("l1", 0.65), ("l1", 0.5), ("obspa", 0.8), ("obspa", 0.65), ("obspa", 0.5),
    ]  # fmt: skip
    kept = {name for name, state in before.items() if after.get(name) == state}
    assert {"l1-flops-0.8.json", "l1-flops-0.8.onnx", "sweep.json"} <= kept
    assert "l1-flops-0.5.onnx" not in kept


def test_an_interrupt_says_what_is_kept(
    command: Command, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        left = chain.with_suffix(".sweep") / ".spa-prune.killed"
        left.mkdir()
        raise KeyboardInterrupt

    arguments = ("sweep", chain, "--flops", "0.8,0.6", "--calibrate", "data-free", "--jobs", 1,
                 "--latency-seconds", 0)  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr("spa_graph.studies.sweep.run.run_all", interrupt)
        ran = command(*arguments)
    assert ran.code == 1
    assert "networks that are finished are kept: run it again to go on" in ran.err
    assert command(*arguments).code == 0
    assert not [path.name for path in chain.with_suffix(".sweep").iterdir() if path.is_dir()]


@pytest.mark.skipif(sys.platform == "win32", reason="it has no signals")
@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize("everyone", [True, False], ids=["as a terminal", "as a job scheduler"])
def test_an_interrupt_ends_all_workers(tmp_path: Path, everyone: bool) -> None:
    """Ctrl-C goes to all processes of a terminal; a job scheduler's signal only to the first."""
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "def score(path):\n"
        "    if path.endswith('chain.onnx'):\n"
        "        return 1.0\n"
        "    pathlib.Path('started').touch()\n"
        "    time.sleep(90)\n"
    )
    line = [sys.executable, "-c", INTERRUPTIBLE, "sweep", "chain.onnx", "--flops", "0.8,0.6",
            "--eval", "slow:score", "--jobs", "2", "--latency-seconds", "0"]  # fmt: skip
    with subprocess.Popen(
        line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as started:  # fmt: skip
        while started.poll() is None and not (tmp_path / "started").exists():
            time.sleep(0.1)
        (os.killpg if everyone else os.kill)(started.pid, signal.SIGINT)
        out, err = started.communicate(timeout=30)
    assert (started.returncode, out) == (1, "")
    lines = [line for line in err.splitlines() if not line.endswith(" ...")]
    assert len(lines) == 1, err
    assert lines[0].startswith("spa-prune: interrupted; networks that are finished are kept")
    left = {path.name for path in (tmp_path / "chain.sweep").iterdir() if path.is_dir()}
    assert not left


def test_workers_warn_as_other_commands_do(process: Command, chain: Path) -> None:
    np.savez(
        chain.with_name("bytes.npz"), x=np.arange(32 * 192, dtype=np.uint8).reshape(32, 3, 8, 8)
    )
    ran = process(
        "sweep", "chain.onnx", "--flops", "0.8,0.6", "--criterion", "l1,l2", "--calibrate",
        "bytes.npz", "--jobs", 2, "--latency-seconds", 0,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    lines = [line for line in ran.err.splitlines() if not line.endswith(" ...")]
    assert len(lines) == 1, ran.err
    assert lines[0].startswith("spa-prune: bytes.npz: `x` is uint8 from 0 to 255")
    assert not list(chain.with_name("chain.sweep").glob(".*"))


def test_a_folder_with_other_settings_is_left_alone(chain: Path) -> None:
    run(chain, ratios=(0.8,), criteria=("l1",))
    folder = chain.with_name("out")
    before = listing(folder)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(OptionError, match="holds a sweep with other seed; choose another folder"):
        run(chain, ratios=(0.8,), criteria=("l1",), seed=7)
    assert {name: listing(folder)[name] for name in before} == before
    found = run(chain, ratios=(0.7,), criteria=("l1",), seed=7, overwrite=True)
    assert [point["asked"] for point in found["points"]] == [0.7]
    assert not (folder / "l1-flops-0.8.onnx").exists()
    assert (folder / "mine.txt").read_text() == "mine"


def test_a_folder_without_networks_takes_other_settings(chain: Path) -> None:
    """As a sweep leaves it whose samples didn't fit."""
    np.savez(chain.with_name("other.npz"), y=X)
    with pytest.raises(OptionError, match="the network has no input `y`"):
        run(chain, calibrate=str(chain.with_name("other.npz")))
    assert not list(chain.parent.rglob("sweep.csv"))
    found = run(chain, ratios=(0.8,), criteria=("l1",))
    assert [point["asked"] for point in found["points"]] == [0.8]


def test_a_budget_that_cannot_be_met_is_a_result(chain: Path) -> None:
    found = run(chain, ratios=(0.8, 0.0001), criteria=("l1",))
    assert found["points"][0]["file"] == "l1-flops-0.8.onnx"
    assert "smallest" in found["points"][1]["failure"]
    assert not (chain.with_name("out") / "l1-flops-0.0001.onnx").exists()


def test_a_metric_that_fails_on_one_network_is_a_result(
    chain: Path, metrics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picky = metrics.replace("size", "picky")
    found = run(chain, ratios=(0.8, 0.5, 0.6), criteria=("l1",), evaluation=picky)
    assert [p["asked"] for p in found["points"] if p["frontier"]] == [0.6]
    assert [p["asked"] for p in found["points"] if "metric" not in p] == [0.5]
    said = "--eval sweep_metrics:picky failed on l1-flops-0.5.onnx: ValueError: too small"
    assert found["points"][-1]["failure"] == said
    done = chain.with_name("out") / "l1-flops-0.8.json"
    before = done.stat().st_mtime_ns
    monkeypatch.setattr("sweep_metrics.picky", len)  # mended
    again = run(chain, ratios=(0.8, 0.5, 0.6), criteria=("l1",), evaluation=picky)
    assert not any("failure" in point for point in again["points"])
    assert done.stat().st_mtime_ns == before


def test_an_interrupted_sweep_has_a_table(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    run(chain, ratios=(0.8,), criteria=("l1",))
    table = chain.with_name("out") / "sweep.csv"
    table.unlink()
    monkeypatch.setattr("spa_graph.studies.sweep.run.run_all", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(chain, ratios=(0.8, 0.5), criteria=("l1",))
    with table.open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["l1-flops-0.8.onnx"]


def test_as_a_command(process: Command, chain: Path, metrics: str) -> None:
    os_path(chain)
    options = ("--flops", "0.8:0.6:0.2", "--criterion", "l1,fpgm", "--calibrate", "x.npz")
    more = ("--eval", metrics, "--latency-seconds", 0, "--jobs", 2)
    ran = process("sweep", "chain.onnx", *options, *more, "--json", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    data = json.loads(ran.out)
    assert [p["criterion"] for p in data["points"]] == ["fpgm", "fpgm", "l1", "l1"]
    again = process("sweep", "chain.onnx", *options, *more)
    assert again.code == 0, again.err
    assert "prune" not in again.err
    for text in ("criterion", "output error", "metric", "best", "the whole network's metric"):
        assert text in again.out, text
    pytest.importorskip("matplotlib")
    assert "fpgm" in (chain.parent / "chain.sweep" / "sweep.svg").read_text()


@pytest.mark.usefixtures("metrics")
def test_a_metric_that_prints_is_no_part_of_the_answer(process: Command, chain: Path) -> None:
    text = "print('imported')\ndef score(path):\n    print('scored', path)\n    return 1.0\n"
    chain.with_name("loud_metrics.py").write_text(text)
    options = ("--flops", "0.8,0.6", "--criterion", "l1", "--eval", "loud_metrics:score")
    more = ("--latency-seconds", 0, "--json", "--quiet")
    for jobs, folder in ((1, "here"), (2, "apart")):
        ran = process("sweep", "chain.onnx", *options, *more, "--jobs", jobs, "-o", folder)
        assert len(json.loads(ran.out)["points"]) == 2, ran.out
        assert "imported" in ran.err and "scored" in ran.err
    assert chain.with_name("apart").is_dir()


@pytest.mark.usefixtures("metrics")
def test_a_page_is_made_anew_and_networks_stay(process: Command, chain: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    page = chain.with_name("page.html")
    options = ("--criterion", "l1", "--eval", "sweep_metrics:size", "--latency-seconds", 0)
    more = ("--jobs", 1, "--html", page)
    first = process("sweep", "chain.onnx", "--flops", "0.8", *options, *more)
    assert first.code == 0, first.err
    assert str(page) in first.out
    before = page.read_text()
    second = process("sweep", "chain.onnx", "--flops", "0.5", *options, *more)
    assert second.code == 0, second.err
    assert page.read_text() != before
    networks = sorted(path.name for path in chain.with_name("chain.sweep").glob("*.onnx"))
    assert networks == ["l1-flops-0.5.onnx", "l1-flops-0.8.onnx"]
    for title in ("somebody else", "spa-prune sweep: other.onnx"):
        text = f"<title>{title}</title>"
        page.write_text(text)
        third = process("sweep", "chain.onnx", "--flops", "0.5", *options, *more)
        assert third.code == 2
        assert third.err.endswith("page.html exists; choose another name\n")
        assert page.read_text() == text


@pytest.mark.parametrize("backend", ["dask", "ray"])
@pytest.mark.filterwarnings("ignore")  # the engines have warnings of their own
def test_on_a_local_cluster(
    chain: Path, metrics: str, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip({"dask": "distributed", "ray": "ray"}[backend])
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    here = run(chain, evaluation=metrics)
    there = sweep(
        chain,
        (0.8, 0.5),
        output=chain.with_name("there"),
        criteria=("l1", "obspa"),
        calibrate=os_path(chain),
        evaluation=metrics,
        jobs=2,
        backend=backend,
    )
    for point in (*here["points"], *there["points"]):
        del point["seconds"]
        assert point.pop("error") > 0  # sums in another order round otherwise
    assert there["points"] == here["points"]


def test_what_sweep_refuses(command: Command, chain: Path, metrics: str) -> None:
    folder, start = chain.parent, ("sweep", chain, "--flops", "0.8")
    assert_refused(command, folder, "sweep", chain, says="give one kind of budget")
    assert_refused(command, folder, *start, says="needs a measure of quality")
    assert_refused(command, folder, *start, "--eval", "nowhere:f", says="can't import nowhere")
    assert_refused(command, folder, *start, "--eval", "x", says="package.module:function")
    assert_refused(command, folder, *start, "--criterion", "l1,l7", says="'l7' is not one of")
    latency = ("sweep", chain, "--latency", "0.8", "--eval", metrics)
    one = "--latency measures one network after the other"
    assert_refused(command, folder, *latency, "--jobs", "2", says=one)
    assert_refused(command, folder, *latency, "--backend", "dask", says=one)
    assert_refused(command, folder, *latency, "--provider", "toaster", says="no such provider")
    both = ("--params", "0.5", "--eval", metrics)
    assert_refused(command, folder, *start, *both, says="give one kind of budget")
    wrong = ("sweep", chain, "--flops", "1.5:0.5:0.5", "--eval", metrics)
    assert_refused(command, folder, *wrong, says="must lie between 0 and 1")
    with pytest.raises(OptionError, match=r"failed on chain\.onnx: KeyError: 'labels'"):
        run(chain, evaluation="sweep_metrics:broken")
    with pytest.raises(OptionError, match=r"leaving failed on chain\.onnx: SystemExit: 3"):
        run(chain, evaluation="sweep_metrics:leaving")
    with pytest.raises(OptionError, match="--cluster needs --backend"):
        run(chain, cluster="tcp://127.0.0.1:1")
    assert not chain.with_name("out").exists()
