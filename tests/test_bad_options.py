"""Outputs, options, budgets and plans that can't be used: one clear line, exit code 2, no file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import spa_graph
from spa_graph import BudgetError, ModelError, OptionError
from spa_graph.cli import cli
from spa_graph.cli.command import CONDITIONS
from spa_graph.passes.options import NEEDS
from tests.conftest import Command, assert_refused
from tests.models import CHAIN, MLP, external_model, network

# --- the output ----------------------------------------------------------------------------------


def test_an_output_folder_that_does_not_exist(command: Command, chain: Path) -> None:
    arguments = (chain, "--flops", 0.5, "-o", chain.parent / "no" / "out.onnx")
    assert_refused(command, chain.parent, *arguments, says="no does not exist")


@pytest.mark.parametrize("option", ["-o", "--plan", "--report"])
def test_an_output_whose_parent_is_a_file(command: Command, chain: Path, option: str) -> None:
    (chain.parent / "file").write_text("x")
    arguments = (chain, "--flops", 0.5, option, chain.parent / "file" / "out.onnx")
    assert_refused(command, chain.parent, *arguments, says="cannot write")


@pytest.mark.parametrize("option", ["-o", "--plan", "--report"])
def test_an_output_that_is_a_folder(command: Command, chain: Path, option: str) -> None:
    arguments = (chain, "--flops", 0.5, option, chain.parent)
    assert_refused(command, chain.parent, *arguments, says="is a folder")


@pytest.mark.parametrize("option", ["-o", "--plan", "--report"])
def test_an_output_that_exists(command: Command, chain: Path, option: str) -> None:
    (chain.parent / "out").write_text("mine")
    arguments = (chain, "--flops", 0.5, option, chain.parent / "out")
    assert_refused(command, chain.parent, *arguments, says="out exists")


@pytest.mark.parametrize("option", ["-o", "--plan", "--report"])
@pytest.mark.parametrize("form", ["itself", "symlink", "dotted", "hard link"])
def test_an_output_that_is_the_input(command: Command, chain: Path, option: str, form: str) -> None:
    folder = chain.parent
    (folder / "link.onnx").symlink_to(chain)
    (folder / "hard.onnx").hardlink_to(chain)
    (folder / "sub").mkdir()
    target = {"itself": chain, "symlink": folder / "link.onnx",
              "dotted": folder / "sub" / ".." / chain.name,
              "hard link": folder / "hard.onnx"}[form]  # fmt: skip
    arguments = (chain, "--flops", 0.5, option, target, "--overwrite")
    assert_refused(command, folder, *arguments, says="inputs are never modified")


def test_an_output_whose_data_file_is_the_inputs(command: Command, tmp_path: Path) -> None:
    path = external_model(tmp_path, location="out.onnx.data")
    arguments = (path, "--flops", 0.5, "-o", tmp_path / "out.onnx", "--overwrite")
    assert_refused(command, tmp_path, *arguments, says="out.onnx.data")


@pytest.mark.parametrize("option", ["-o", "--plan", "--report"])
@pytest.mark.parametrize("form", ["itself", "behind a link"])
def test_an_output_that_holds_the_inputs_weights(
    command: Command, tmp_path: Path, option: str, form: str
) -> None:
    path, data = external_model(tmp_path), tmp_path / "weights.bin"
    if form == "behind a link":
        data = data.rename(tmp_path / "real.bin")
        (tmp_path / "weights.bin").symlink_to(data)
    arguments = (path, "--flops", 0.5, option, data, "--overwrite")
    assert_refused(command, tmp_path, *arguments, says="inputs are never modified")


def test_a_report_that_is_the_plan_applied(command: Command, chain: Path) -> None:
    plan = write_plan(chain.parent, with_kept({}))
    arguments = ("apply", chain, plan, "--report", plan, "--overwrite")
    assert_refused(command, chain.parent, *arguments, says="inputs are never modified")


@pytest.mark.parametrize("option", ["--output", "--report"])
def test_an_output_that_is_the_samples(command: Command, chain: Path, option: str) -> None:
    samples = chain.with_name("x.npz")
    np.savez(samples, x=np.zeros((4, 3, 8, 8), np.float32))
    arguments = (chain, "--flops", 0.5, "--calibrate", samples, option, samples, "--overwrite")
    assert_refused(command, chain.parent, *arguments, says="inputs are never modified")


def test_calibration_data_of_no_name(command: Command, chain: Path) -> None:
    arguments = (chain, "--flops", 0.5, "--calibrate", "")
    assert_refused(command, chain.parent, *arguments, says="--calibrate names nothing")


@pytest.mark.parametrize("option", ["--plan", "--report"])
def test_a_file_where_the_outputs_weights_go(command: Command, tmp_path: Path, option: str) -> None:
    path, out = external_model(tmp_path), tmp_path / "out.onnx"
    arguments = (path, "--flops", 0.5, "-o", out, option, tmp_path / "out.onnx.data")
    assert_refused(command, tmp_path, *arguments, says="out.onnx.data is for weights")


def test_two_outputs_of_one_name(command: Command, chain: Path) -> None:
    out = chain.parent / "out"
    arguments = (chain, "--flops", 0.5, "--plan", out, "--report", out)
    assert_refused(command, chain.parent, *arguments, says="named twice")


def test_the_library_does_not_overwrite_its_input(chain: Path) -> None:
    before = chain.read_bytes()
    with pytest.raises(OptionError, match="never modified"):
        spa_graph.prune(chain, flops=0.5, output=chain)
    assert chain.read_bytes() == before


# --- the budget ----------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--flops", "--params", "--ratio"])
@pytest.mark.parametrize("value", ["0", "1", "2", "-0.5", "nan", "inf", "abc", "50%", ""])
def test_a_budget_that_is_none(command: Command, chain: Path, option: str, value: str) -> None:
    assert_refused(command, chain.parent, chain, f"{option}={value}", says=option)


def test_no_budget_and_two_budgets(command: Command, chain: Path) -> None:
    assert_refused(command, chain.parent, chain, says="give a budget")
    arguments = (chain, "--flops", 0.5, "--params", 0.5)
    assert_refused(command, chain.parent, *arguments, says="give one budget")


@pytest.mark.parametrize("option", ["flops", "params"])
def test_an_unreachable_budget_names_the_smallest_that_works(
    command: Command, chain: Path, option: str
) -> None:
    arguments = (chain, f"--{option}", 0.0001)
    assert_refused(command, chain.parent, *arguments, says="the smallest possible is 0.")
    with pytest.raises(BudgetError) as caught:
        spa_graph.prune(chain, round_to=1, **{option: 0.0001})
    smallest = str(caught.value).split("smallest possible is ")[1].split()[0]
    result = spa_graph.prune(chain, round_to=1, **{option: float(smallest)})
    assert result.report["ratio"][option] <= float(smallest)
    assert all(group["kept"] == 1 for group in result.report["groups"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--criterion", "magic"), "magic"),
        (("--aggregate", "median"), "median"),
        (("--normalize", "zscore"), "zscore"),
        (("--exclude", "nothing*"), "--exclude nothing*: no weight or operator"),
        (("--min-channels", "0"), "--min-channels"),
        (("--round-to", "3.5"), "'3.5' is neither auto nor a whole number from 1 on"),
        (("--round-to", "0"), "'0' is neither auto nor a whole number from 1 on"),
        (("--seed", "x"), "--seed"),
        (("--input-shape", "x"), "--input-shape"),
        (("--input-shape", "x=1,2"), "has 4 axes"),
        (("--input-shape", "z=1,3,8,8"), "no input `z`"),
        (("--round-to", "512"), "and counts are multiples of 512"),
        (("--no-such-option",), "--no-such-option"),
        (("--criterion",), "--criterion"),
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_used(
    command: Command, chain: Path, arguments: tuple[str, ...], says: str
) -> None:
    assert_refused(command, chain.parent, chain, "--flops", 0.5, *arguments, says=says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--learning-rate", "0.1"), "--learning-rate needs --finetune: it has no effect without"),
        (("--learning-rate", "1e-3"), "--learning-rate needs --finetune"),  # the default, asked for
        (("--teacher",), "--teacher needs --finetune"),
        (("--samples", "9"), "--samples needs --calibrate or --data"),
        (("--memory-limit", "4GB"), "--memory-limit needs --calibrate"),
        (("--preprocess", "imagenet"), "--preprocess needs --calibrate"),
        (("--loss", "mse"), "--loss needs --data"),
        (("--threads", "2", "--latency-seconds", "0"), "--threads needs --latency or --latency-"),
        (("--provider", "cpu", "--latency-seconds", "0"), "--provider needs --latency or"),
        (("--batch", "2", "--latency-seconds", "0"), "--batch needs --latency or"),
    ],
)  # fmt: skip
def test_an_option_that_would_have_no_effect(
    command: Command, chain: Path, arguments: tuple[str, ...], says: str
) -> None:
    assert_refused(command, chain.parent, chain, "--flops", 0.5, *arguments, says=says)


@pytest.mark.parametrize("name", ["samples", "preprocess"])
def test_options_of_data_that_is_not_given(command: Command, chain: Path, name: str) -> None:
    value = {"samples": 3, "preprocess": "imagenet"}[name]
    arguments = ("compare", chain, chain, f"--{name}", value)
    assert_refused(command, chain.parent, *arguments, says=f"--{name} needs --data: it has no")
    plan = write_plan(chain.parent, with_kept({}))
    arguments = ("apply", chain, plan, f"--{name}", value)
    assert_refused(command, chain.parent, *arguments, says=f"--{name} needs --calibrate: it has no")


def test_every_option_that_needs_another_is_one() -> None:
    for name, others in (NEEDS | CONDITIONS).items():
        commands = [cli.commands[verb] for verb in ("prune", "sweep")]
        assert {name, *others} <= {each.name for command in commands for each in command.params}


def test_options_of_the_library_that_would_have_no_effect() -> None:
    model = network(MLP)
    for wrong in ({"samples": 3}, {"teacher": True}, {"learning_rate": 0.1}, {"loss": "mse"},
                  {"memory_limit": 1 << 30}, {"preprocess": "imagenet"}):  # fmt: skip
        with pytest.raises(OptionError, match="it has no effect without"):
            spa_graph.prune(model, flops=0.5, **wrong)  # type: ignore[arg-type]


def test_a_provider_that_is_not_there_is_said_before_anything_is_read(
    command: Command, tmp_path: Path
) -> None:
    absent = tmp_path / "absent.onnx"
    budget = ("--flops", 0.5)
    for verb, more in (((), budget), (("bench",), ()),
                       (("sweep",), (*budget, "--calibrate", "data-free"))):  # fmt: skip
        arguments = (*verb, absent, *more, "--provider", "abacus")
        assert_refused(command, tmp_path, *arguments, says="--provider abacus: the installed")
    with pytest.raises(OptionError, match="--provider abacus"):
        spa_graph.prune(absent, flops=0.5, provider="abacus")


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--dynamic", "batch=0", "'batch=0': a size is a whole number from 1 on, as in batch=8"),
        ("--dynamic", "batch=-3", "a size is a whole number from 1 on"),
        ("--dynamic", "batch=1.5", "a size is a whole number from 1 on"),
        ("--dynamic", "batch=", "a size is a whole number from 1 on"),
        ("--dynamic", "batch", "is not of the form NAME=N, as batch=8 is"),
        ("--dynamic", "=4", "is not of the form NAME=N"),
        ("--input-shape", "x=1,0", "sizes are whole numbers from 1 on"),
        ("--input-shape", "=1,3", "is not of the form NAME=1,3,224,224"),
    ],
)
def test_sizes_that_are_none(
    command: Command, chain: Path, option: str, value: str, says: str
) -> None:
    assert_refused(command, chain.parent, "bench", chain, option, value, says=says)


@pytest.mark.parametrize("name", [".", "..", "/", ""])
def test_a_folder_in_the_place_of_a_file(
    command: Command, chain: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(chain.parent)
    assert_refused(command, chain.parent, name, "--flops", 0.5, says="a folder without saved_model")
    assert_refused(command, chain.parent, chain, "--flops", 0.5, "-o", name, says="is a folder")


def test_options_of_the_library() -> None:
    model = network(MLP)
    for wrong in ({"criterion": "x"}, {"aggregate": "x"}, {"normalize": "x"}, {"nonsense": 1},
                  {"flops": "x"}, {"min_channels": 0}, {"round_to": -1}):  # fmt: skip
        with pytest.raises(OptionError):
            spa_graph.prune(model, **({"flops": 0.5} | wrong))
    with pytest.raises(OptionError, match="give a budget"):
        spa_graph.prune(model)
    with pytest.raises(ModelError, match="no ONNX model"):
        spa_graph.prune(42, flops=0.5)


# --- the plan ------------------------------------------------------------------------------------


def write_plan(folder: Path, content: object) -> Path:
    path = folder / "plan.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def with_kept(kept: object) -> dict[str, object]:
    return {"format": "spa-plan/1", "model": {}, "kept": kept}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "not a plan"),
        ("null", "not a plan"),
        ({"format": "spa-plan/9", "kept": {}}, "not a plan"),
        ({"format": "spa-plan/1", "kept": []}, "malformed"),
        ({"format": "spa-plan/1", "kept": {}, "model": 3}, "malformed"),
        (with_kept({}) | {"model": {"shapes": {"w1": 3}}}, "malformed"),
        (with_kept({"w1": [0, 1]}), "malformed"),
        (with_kept({"w1": {"x": [0, 1]}}), "malformed"),
        (with_kept({"w1": {"0": "01"}}), "malformed"),
        (with_kept({"w1": {"0": [0.5]}}), "malformed"),
        (with_kept({"w1": {"0": []}}), "malformed"),
        (with_kept({"w1": {"0": [1, 0]}}), "malformed"),
        (with_kept({"w1": {"0": [1, 1]}}), "malformed"),
        (with_kept({"w1": {"0": [-1, 1]}}), "malformed"),
        (with_kept({"w1": {"0": [[0], [1]]}}), "malformed"),
        (with_kept({"w1": {"-1": [0]}}), "malformed"),
        (with_kept({"w1": {"0": [99999999999999999999999999]}}), "malformed"),
        (with_kept({}) | {"kept_per_use": {"w1": [{"node": "a"}]}}, "malformed"),
        (with_kept({"other": {"0": [0]}}), "another network: it has no weight `other`"),
        (with_kept({"w1": {"0": [0, 1, 8]}}), "no such positions"),
        (with_kept({"w1": {"7": [0, 1]}}), "no such positions"),
        (with_kept({"w1": {"0": [0, 1]}}), "breaks a coupling"),
        (with_kept({"w1": {"1": [0, 1]}}), "can't be pruned here: is graph input `x`"),
        (with_kept({"w3": {"1": [0, 1]}}), "can't be pruned here: is graph output `y`"),
        (with_kept({"w1": {"0": [0]}, "b1": {"0": [1]}, "w2": {"1": [0]}}), "breaks a coupling"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_applied(
    command: Command, chain: Path, content: object, says: str
) -> None:
    plan = write_plan(chain.parent, content)
    assert_refused(command, chain.parent, "apply", chain, plan, says=says)


def test_a_plan_that_is_not_there(command: Command, chain: Path) -> None:
    folder = chain.parent
    assert_refused(command, folder, "apply", chain, folder / "no.json", says="cannot read plan")
    assert_refused(command, folder, "apply", chain, folder, says="cannot read plan")
    assert_refused(command, folder, "apply", chain, chain, says="is not JSON")


def test_the_plan_of_another_network(command: Command, chain: Path) -> None:
    plan = chain.parent / "plan.json"
    spa_graph.prune(network(MLP), flops=0.5).plan.save(plan)
    assert_refused(command, chain.parent, "apply", chain, plan, says="the plan")


def test_a_network_of_the_same_weights_in_other_sizes(command: Command, chain: Path) -> None:
    plan = chain.parent / "plan.json"
    for width in (20, 6):  # positions beyond those that there are; positions that all exist
        other = network(CHAIN.replace("[8,3,3,3]", f"[{width},3,3,3]")
                        .replace("[8] b1", f"[{width}] b1")
                        .replace("[12,8,3,3]", f"[12,{width},3,3]"))  # fmt: skip
        spa_graph.prune(other, flops=0.5).plan.save(plan)
        says = f"its weight `w1` is [{width}, 3, 3, 3], not [8, 3, 3, 3]"
        assert_refused(command, chain.parent, "apply", chain, plan, says=says)
