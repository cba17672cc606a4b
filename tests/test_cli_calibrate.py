"""Calibration through a real process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.conftest import Command, listing

FAST = ("--latency-seconds", 0)


@pytest.fixture
def samples(chain: Path) -> Path:
    value = onnx.load(chain).graph.input[0]
    shape = [d.dim_value or 48 for d in value.type.tensor_type.shape.dim]
    shape[0] = 48
    path = chain.with_name("samples.npz")
    data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.savez(path, **{value.name: data})
    return path


@pytest.mark.parametrize("method", ["none", "bias", "bn", "ls", "obspa"])
def test_refits_and_says_so(process: Command, chain: Path, samples: Path, method: str) -> None:
    options = ("--calibrate", samples.name, "--reconstruct", method, "--report", "r.json")
    ran = process("chain.onnx", "--flops", 0.5, *options, *FAST)
    assert ran.code == 0, ran.err
    said = "calibrated on samples.npz (48 samples): 32 fitted to, 10 held out, judged by 6 others"
    assert said in " ".join(ran.out.split())
    report = json.loads(chain.with_name("r.json").read_text())
    assert report["ratio"]["flops"] <= 0.5
    assert report["options"]["criterion"] == "obspa"
    assert report["calibration"]["probes"]
    found = report["calibration"].get("reconstruction")
    assert (found is None) == (method == "none")
    if found is not None:
        assert found["after"] <= found["before"]
    assert sorted(listing(chain.parent)) == [
        "chain.onnx", "chain.pruned.onnx", "r.json", "samples.npz",
    ]  # fmt: skip


def test_says_what_it_would_cost(process: Command, chain: Path) -> None:
    assert chain.exists()
    ran = process("chain.onnx", "--flops", 0.5, "--latency-seconds", 0.1)
    assert "--calibrate data-free would do it in about" in ran.out


def test_apply_refits_too(process: Command, chain: Path, samples: Path) -> None:
    plan = ("--plan", "p.json", "--calibrate", samples.name)
    assert process("chain.onnx", "--flops", 0.5, *plan, *FAST).code == 0
    again = ("-o", "again.onnx", "--calibrate", samples.name)
    ran = process("apply", "chain.onnx", "p.json", *again, *FAST)
    assert ran.code == 0, ran.err
    first, second = (chain.with_name(name) for name in ("chain.pruned.onnx", "again.onnx"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--calibrate", "missing.npz"), "no such file: missing.npz"),
        (("--reconstruct", "ls"), "--reconstruct ls needs calibration data"),
        (("--criterion", "wanda"), "`wanda` needs calibration data"),
        (("--allocation", "distortion"), "--allocation distortion needs calibration data"),
        (("--calibrate", "data-free", "--memory-limit", "12"), "--memory-limit must be at least"),
        (("--calibrate", "data-free", "--memory-limit", "much"), "is not a size such as 4GB"),
    ],
)
def test_bad_options(process: Command, chain: Path, options: tuple[str, ...], said: str) -> None:
    before = listing(chain.parent)
    ran = process("chain.onnx", "--flops", 0.5, *options, *FAST)
    assert ran.code == 2
    assert said in ran.err
    assert listing(chain.parent) == before
