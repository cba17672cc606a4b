"""Calibration through a real process."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest

from spa_graph.errors import SpaWarning
from spa_graph.runtime.calibration.wanted import Array, Wanted, warn_unscaled
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


BYTES = "`x` is uint8 from 0 to 255, and the network gets these numbers as they are"


def test_bytes_for_an_input_of_real_numbers(process: Command, chain: Path) -> None:
    bytes_ = np.random.default_rng(0).integers(0, 256, (48, 3, 8, 8), np.uint8)
    bytes_.flat[:2] = 0, 255
    np.savez(chain.with_name("bytes.npz"), x=bytes_)
    options = ("--flops", 0.5, "--calibrate", "bytes.npz", *FAST)
    ran = process("chain.onnx", *options, "--report", "r.json", "--quiet")
    assert ran.code == 0, ran.err
    lines = ran.err.splitlines()
    assert len(lines) == 1, ran.err
    assert lines[0].startswith(f"spa-prune: bytes.npz: {BYTES}")
    assert "(x / 255).astype('float32')" in lines[0]
    report = json.loads(chain.with_name("r.json").read_text())
    source = "bytes.npz, `x` as stored: uint8 from 0 to 255 (48 samples)"
    assert report["calibration"]["source"] == source

    np.savez(chain.with_name("floats.npz"), x=bytes_.astype(np.float32))
    options = ("--flops", 0.5, "--calibrate", "floats.npz", *FAST, "-o", "again.onnx", "--quiet")
    again = process("chain.onnx", *options)
    assert (again.code, again.err) == (0, "")
    first, second = (chain.with_name(name) for name in ("chain.pruned.onnx", "again.onnx"))
    assert first.read_bytes() == second.read_bytes()  # as it was: nothing is scaled


@pytest.mark.parametrize(
    ("array", "warned"),
    [
        (np.array([[0, 200]], np.uint8), True),
        (np.array([[-9000, 9000]], np.int16), True),
        (np.array([[0, 1]], np.uint8), False),  # a mask
        (np.array([[0, 200]], np.int64), False),  # numbers as they are meant
        (np.array([[0, 200]], np.float32), False),
    ],
)
def test_what_is_taken_for_stored_images_and_sounds(array: Array, warned: bool) -> None:
    want = Wanted("x", np.dtype(np.float32), (None, 2), (1, 2), 0)
    integers = Wanted("x", np.dtype(np.int64), (None, 2), (1, 2), 0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        label = warn_unscaled(want, [array], "samples.npz")
        assert warn_unscaled(integers, [array], "samples.npz") == ""
    assert [issubclass(each.category, SpaWarning) for each in said] == [True] * warned
    assert ("as stored" in label) == warned


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
