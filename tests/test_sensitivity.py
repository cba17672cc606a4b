"""`spa-prune sensitivity`: each group alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import spa_graph
from spa_graph.console import show_sensitivity
from spa_graph.errors import OptionError
from spa_graph.passes.statistics.distortion import distortion
from spa_graph.runtime.sessions import open_session, run
from spa_graph.studies.sensitivity import sensitivity
from tests.conftest import Command, assert_refused

BRIGHT, OTHER = (
    {"x": np.random.default_rng(seed).normal(size=(64, 3, 8, 8)).astype(np.float32)}
    for seed in (3, 4)
)


def test_each_group_at_each_level(chain: Path) -> None:
    found = sensitivity(chain, calibrate=BRIGHT, levels=(0.25, 0.75))
    groups = {group["name"]: group for group in found["groups"]}
    assert list(groups) == ["w1:0", "w2:0"]
    assert [point["removed"] for point in groups["w1:0"]["points"]] == [2, 6]
    assert [point["removed"] for point in groups["w2:0"]["points"]] == [3, 9]
    for group in groups.values():
        errors = [point["distortion"] for point in group["points"]]
        assert 0 < errors[0] < errors[1]
    # 64 pixels, 3 x 3 kernels; w1 has 3 inputs and 8 outputs, w2 8 and 12, w3 12 and 5
    whole = 64 * 9 * (3 * 8 + 8 * 12) + 12 * 5
    left = 64 * 9 * (3 * 6 + 6 * 12) + 12 * 5
    assert groups["w1:0"]["points"][0]["flops"] == pytest.approx(left / whole)
    assert found["criterion"] == "obspa"


def test_small_groups_have_fewer_counts_than_levels(
    chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One channel of eight is near 10% and not near 2%."""
    found = sensitivity(chain, calibrate=BRIGHT, levels=(0.02, 0.1, 0.5))
    group = next(each for each in found["groups"] if each["name"] == "w1:0")
    assert [(p["level"], p["removed"]) for p in group["points"]] == [(0.1, 1), (0.5, 4)]
    show_sensitivity(found)
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "w1:0" in line)
    none, one, half = (cell.strip() for cell in row.split("│")[3:])
    assert not none
    assert 0 < float(one) < float(half)


def test_it_agrees_with_pruning_one_group_for_real(chain: Path, tmp_path: Path) -> None:
    """Without the last group's reader refitted by data other than the network's own."""
    found = sensitivity(chain, calibrate=BRIGHT, levels=(0.5,), criterion="l1")
    measured = {group["name"]: group["points"][0]["distortion"] for group in found["groups"]}
    ratio = {}
    for name, excluded in (("w1:0", "w3"), ("w2:0", "w1")):
        output = tmp_path / f"{name[:2]}.onnx"
        spa_graph.prune(
            chain, ratio=0.5, exclude=(excluded,), calibrate=BRIGHT, criterion="l1", output=output
        )
        pair = [[run(open_session(path), OTHER)] for path in (chain, output)]
        ratio[name] = distortion(*pair) / measured[name]
    assert 0.3 < ratio["w1:0"] < 3, ratio
    assert 0.3 < ratio["w2:0"] < 3, ratio


def test_as_table_json_and_picture(process: Command, chain: Path) -> None:
    data = chain.with_name("x.npz")
    np.savez(data, **BRIGHT)
    options = ("--calibrate", "x.npz", "--levels", "0.5")
    ran = process("sensitivity", "chain.onnx", *options)
    assert ran.code == 0, ran.err
    for text in ("group", "-50%", "w1:0", "w2:0", "x.npz (64 samples)", "ranked by obspa"):
        assert text in ran.out, text
    pytest.importorskip("matplotlib")
    ran = process("sensitivity", "chain.onnx", *options, "--json", "--quiet", "--picture", "s.svg")
    assert (ran.code, ran.err) == (0, "")
    assert [group["name"] for group in json.loads(ran.out)["groups"]] == ["w1:0", "w2:0"]
    ran = process("sensitivity", "chain.onnx", *options, "--picture", "t.svg")
    assert ran.out.splitlines()[-1] == "wrote t.svg"
    picture = chain.with_name("s.svg").read_text()
    for text in (">w1:0</text>", ">w2:0</text>", ">without 50%</text>"):
        assert text in picture, text


def test_what_sensitivity_refuses(command: Command, chain: Path) -> None:
    with pytest.raises(OptionError, match="--levels"):
        sensitivity(chain, calibrate=BRIGHT, levels=())
    folder, start = chain.parent, ("sensitivity", chain)
    assert_refused(command, folder, *start, says="--calibrate data-free")
    free = (*start, "--calibrate", "data-free")
    assert_refused(command, folder, *free, "--levels", "0.5,1", says="--levels")
    assert_refused(command, folder, *free, "--picture", folder / "s.txt", says="ends in .svg")
    assert_refused(command, folder, *free, "--exclude", "w*", says="no prunable channel")
    pytest.importorskip("matplotlib")
    assert_refused(command, folder, *free, "--picture", folder / "no" / "s.svg", says="folder")
