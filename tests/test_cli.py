"""The command through a real process: files, exit codes, and nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import spa_graph
import spa_prune
from tests.conftest import Command, listing
from tests.models import (
    CHAIN,
    assert_same_outputs,
    changed_by,
    keep,
    network,
    random_feeds,
    stored,
    zero,
)

FAST = ("--latency-seconds", 0)


def test_prune_writes_a_smaller_file_beside_the_input(process: Command, chain: Path) -> None:
    before = chain.read_bytes()
    ran = process("chain.onnx", "--flops", 0.5, "--latency-seconds", 0.1)
    assert ran.code == 0, ran.err
    assert chain.read_bytes() == before
    out = chain.with_name("chain.pruned.onnx")
    assert sorted(listing(chain.parent)) == ["chain.onnx", "chain.pruned.onnx"]
    assert out.stat().st_size < len(before)
    rows = ("FLOPs", "parameters", "file size", "channels", "latency, median of")
    assert all(row in ran.out for row in rows), ran.out
    assert "verified: equals the original with zeroed channels" in ran.out
    assert ran.out.splitlines()[-1] == "wrote chain.pruned.onnx"
    steps = [line.removesuffix(" ...") for line in ran.err.splitlines()]
    assert steps == [
        "load", "read", "analyze", "score", "allocate", "rewrite", "write", "verify", "measure",
    ]  # fmt: skip


def test_prune_with_every_file(process: Command, chain: Path) -> None:
    files = ("-o", "o.onnx", "--plan", "p.json", "--report", "r.json")
    ran = process("chain.onnx", "--params", 0.6, *files, "--quiet", *FAST)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert sorted(listing(chain.parent)) == ["chain.onnx", "o.onnx", "p.json", "r.json"]
    original, pruned = network(CHAIN), onnx.load(chain.with_name("o.onnx"))
    plan = spa_graph.Plan.load(chain.with_name("p.json"))
    assert_same_outputs(pruned, changed_by(original, plan, zero), random_feeds(original))
    sliced = stored(changed_by(original, plan, keep))
    assert all(np.array_equal(sliced[name], array) for name, array in stored(pruned).items())


def test_the_report(process: Command, chain: Path) -> None:
    options = ("--criterion", "l2", "--round-to", 2, "--report", "r.json")
    ran = process("chain.onnx", "--flops", 0.5, *options, "--latency-seconds", 0.1)
    assert ran.code == 0, ran.err
    report = json.loads(chain.with_name("r.json").read_text())
    assert set(report["versions"]) >= {"python", "spa-prune", "onnx", "onnxruntime", "numpy"}
    assert report["options"]["flops"] == 0.5
    assert report["options"]["criterion"] == "l2"
    assert report["before"]["flops"] > report["after"]["flops"]
    assert report["ratio"]["flops"] == report["after"]["flops"] / report["before"]["flops"] <= 0.5
    assert report["before"]["bytes"] == chain.stat().st_size
    assert report["after"]["bytes"] == chain.with_name("chain.pruned.onnx").stat().st_size
    assert [group["name"] for group in report["groups"]] == ["w1:0", "w2:0"]
    assert all(group["kept"] % 2 == 0 for group in report["groups"])
    assert [row["type"] for row in report["operators"]] == ["Conv", "Conv", "MatMul"]
    assert report["frozen"]["parameters"]["w3:1"] == "is graph output `y`"
    assert report["verification"]["error"] <= report["verification"]["tolerated"]
    assert report["latency"]["before_ms"] > 0
    assert set(report["seconds"]) >= {"load", "analyze", "score", "allocate", "rewrite", "verify"}


def test_apply_replays_a_plan_to_the_byte(process: Command, chain: Path) -> None:
    made = process("chain.onnx", "--flops", 0.5, "-o", "a.onnx", "--plan", "p.json", *FAST)
    assert made.code == 0, made.err
    ran = process("apply", "chain.onnx", "p.json", "-o", "b.onnx", *FAST)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[-1] == "wrote b.onnx"
    first, second = (chain.with_name(name) for name in ("a.onnx", "b.onnx"))
    assert first.read_bytes() == second.read_bytes()
    finetuned = network(CHAIN, seed=5)
    onnx.save(finetuned, chain.with_name("other.onnx"))
    ran = process("apply", "other.onnx", "p.json", "--quiet", *FAST)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    plan = spa_graph.Plan.load(chain.with_name("p.json"))
    want = changed_by(finetuned, plan, zero)
    assert_same_outputs(chain.with_name("other.pruned.onnx"), want, random_feeds(want))


def test_dry_run_writes_nothing(process: Command, chain: Path) -> None:
    before = listing(chain.parent)
    files = ("-o", "o.onnx", "--plan", "p.json", "--report", "r.json")
    ran = process("chain.onnx", "--flops", 0.5, "--dry-run", *files, *FAST)
    assert ran.code == 0, ran.err
    assert "FLOPs" in ran.out
    assert ran.out.splitlines()[-1] == "dry run: nothing was written"
    assert listing(chain.parent) == before


def test_overwrite(process: Command, chain: Path) -> None:
    out = chain.with_name("chain.pruned.onnx")
    out.write_text("old")
    refused = process("chain.onnx", "--flops", 0.5, *FAST)
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert out.read_text() == "old"
    ran = process("chain.onnx", "--flops", 0.5, "--overwrite", *FAST)
    assert ran.code == 0, ran.err
    onnx.checker.check_model(onnx.load(out))


@pytest.mark.usefixtures("chain")
def test_inspect(process: Command) -> None:
    ran = process("inspect", "chain.onnx")
    assert (ran.code, ran.err) == (0, "")
    for text in ("channel groups", "w1:0", "w2:0", "exact", "cost per operator", "Conv",
                 "frozen weight axes", "is graph output `y`", "smallest reachable"):  # fmt: skip
        assert text in ran.out, text


@pytest.mark.usefixtures("chain")
def test_inspect_as_json(process: Command) -> None:
    ran = process("inspect", "chain.onnx", "--json")
    assert (ran.code, ran.err) == (0, "")
    data = json.loads(ran.out)
    assert {group["name"]: group["channels"] for group in data["groups"]} == {"w1:0": 8, "w2:0": 12}
    assert data["channels"] == 20
    members = [{(p["name"], p["axis"]) for p in group["parameters"]} for group in data["groups"]]
    assert members[0] == {("w1", 0), ("b1", 0), ("w2", 1)}
    assert 0 < data["smallest_flops_ratio"] < data["smallest_params_ratio"] < 1
    # 64 pixels: 3x3 convolutions 3 -> 8 -> 12, then 12 -> 5; two FLOPs per multiplication
    assert data["flops"] == 2 * (64 * 9 * (3 * 8 + 8 * 12) + 12 * 5)
    assert data["params"] == 9 * (3 * 8 + 8 * 12) + 8 + 12 + 12 * 5


@pytest.mark.usefixtures("chain")
def test_inspect_as_dot(process: Command) -> None:
    ran = process("inspect", "chain.onnx", "--dot", "w1:0")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.lstrip().startswith(("graph", "strict graph", "digraph"))
    assert "w1" in ran.out
    assert "w2" in ran.out
    wrong = process("inspect", "chain.onnx", "--dot", "w9:0")
    assert wrong.code == 2
    assert "no such group" in wrong.err


def test_demo(process: Command, tmp_path: Path) -> None:
    ran = process("demo", "-o", "demo.onnx")
    assert ran.code == 0, ran.err
    assert "accuracy on held-out digits" in ran.out
    assert "FLOPs" in ran.out
    onnx.checker.check_model(onnx.load(tmp_path / "demo.onnx"))
    assert sorted(listing(tmp_path)) == ["demo.onnx"]


def test_version_and_help(process: Command, tmp_path: Path) -> None:
    ran = process("--version")
    assert (ran.code, ran.err) == (0, "")
    assert spa_graph.__version__ in ran.out
    for arguments in (("--help",), ("prune", "-h"), ("apply", "--help"), ("inspect", "--help")):
        ran = process(*arguments)
        assert (ran.code, ran.err) == (0, ""), arguments
        assert "spa-prune" in ran.out
    assert not listing(tmp_path)


def test_no_arguments_show_help(process: Command) -> None:
    ran = process()
    assert ran.code == 2
    assert "spa-prune" in ran.out + ran.err
    assert "Traceback" not in ran.err


def test_bad_input_exits_with_2(process: Command, chain: Path) -> None:
    before = listing(chain.parent)
    for arguments, says in (
        (("chain.onnx", "--flops", 2), "--flops must lie between 0 and 1"),
        (("chain.onnx", "--flops", 0.001), "the smallest possible is"),
        (("no.onnx", "--flops", 0.5), "no such file"),
        (("chain.onnx", "--flops", "abc"), "abc"),
    ):
        ran = process(*arguments)
        assert (ran.code, ran.out) == (2, ""), arguments
        assert says in ran.err.splitlines()[-1]
        assert "Traceback" not in ran.err
    assert listing(chain.parent) == before


# --- failures half-way, in this process ----------------------------------------------------------


@pytest.mark.parametrize("step", ["files.write", "proof.verify", "report", "measure"])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (spa_graph.VerificationError("output `y` differs"), 3),
        (spa_graph.RewriteError("a shape is wrong"), 3),
        (spa_graph.ModelError("bad"), 2),
        (OSError(28, "No space left on device"), 1),
        (MemoryError(), 1),
        (ZeroDivisionError("a bug"), 1),
        (KeyboardInterrupt(), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_a_failure_leaves_no_file(
    command: Command,
    chain: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: BaseException,
    code: int,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    before = listing(chain.parent)
    monkeypatch.setattr(f"spa_graph.api.{step}", fail)
    files = ("--plan", chain.with_name("p"), "--report", chain.with_name("r"))
    ran = command(chain, "--flops", 0.5, *files, "--latency-seconds", 0.01)
    assert (ran.code, ran.out) == (code, ""), ran
    last = ran.err.splitlines()[-1]
    assert last.startswith("spa-prune: ")
    assert "Traceback" not in ran.err
    assert listing(chain.parent) == before


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_leaves_no_file(
    name: str, command: Command, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Job schedulers stop with SIGTERM, a terminal that is closed with SIGHUP."""
    before = listing(chain.parent)
    stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {each: signal.getsignal(each) for each in stopping}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it
    stop = getattr(signal, name)
    monkeypatch.setattr("spa_graph.api.proof.verify", lambda *_, **__: os.kill(os.getpid(), stop))
    try:
        ran = command(chain, "--flops", 0.5)
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines()[-1] == "spa-prune: interrupted; nothing was written"
    assert listing(chain.parent) == before


def test_an_interrupt_of_imports_is_one_line(tmp_path: Path) -> None:
    """Raised there, it would come out as an ImportError of NumPy, or as a traceback."""
    program = (
        "import os, signal, sys, spa_prune\n"
        "class Slow:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.startswith('numpy.'):\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "spa_prune.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(spa_prune.__file__).parent)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "spa-prune: interrupted; nothing was written\n"


@pytest.mark.parametrize("module", ["spa_prune", "spa_graph"])
def test_modules_run_as_the_command_does(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, timeout=60,
        cwd=Path(spa_prune.__file__).parent,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"spa-prune, version {spa_graph.__version__}\n")


def test_a_wrong_rewrite_is_caught(
    command: Command, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight sliced at the wrong positions: shapes fit, the proof fails."""
    from spa_graph.frontends.onnx import editor
    from spa_graph.frontends.onnx.weights import sliced

    def off_by_one(tensor, kept):  # type: ignore[no-untyped-def]
        shifted = {axis: np.sort((index + 1) % tensor.shape[axis]) for axis, index in kept.items()}
        return sliced(tensor, shifted if tensor.name == "w2" else kept)

    before = listing(chain.parent)
    monkeypatch.setattr(editor, "sliced", off_by_one)
    ran = command(chain, "--flops", 0.5, *FAST)
    assert ran.code == 3, ran
    assert "output `y` differs by" in ran.err.splitlines()[-1]
    assert "nothing was written" in ran.err.splitlines()[-1]
    assert listing(chain.parent) == before


@pytest.mark.parametrize("option", ["--plan", "--report"])
def test_a_plan_or_report_that_cannot_be_written(
    command: Command, chain: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """The disk is full at the last moment: what was there stays."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    kept = chain.with_name("kept")
    kept.write_bytes(b"old")
    monkeypatch.setattr(Path, "write_text", fail)
    ran = command(chain, "--flops", 0.5, option, kept, "--overwrite", *FAST)
    assert ran.code == 1
    assert "No space left" in ran.err.splitlines()[-1]
    assert kept.read_bytes() == b"old"
    assert sorted(listing(chain.parent)) == ["chain.onnx", "chain.pruned.onnx", "kept"]


def test_the_batch_that_latency_is_for_is_said(chain: Path, process: Command) -> None:
    options = ("--flops", 0.5, "--batch", 4, "--latency-seconds", 0.05)
    ran = process("chain.onnx", *options)
    assert ran.code == 0, ran.err
    assert "FLOPs are for input x 1x3x8x8, latency for batches of 4" in ran.out
    assert chain.exists()
