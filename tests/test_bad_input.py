"""Whatever comes in that can't be pruned: one clear line, exit code 2, and no file left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.conftest import Ran
from tests.models import CHAIN, MLP, network

import spa_graph
from spa_graph import BudgetError, ModelError, OptionError

Command = Callable[..., Ran]
BIG = """
big (float[N,64] x) => (float[N,3] y) <float[64,64] w1, float[64,3] w2>
{ h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }
"""


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its size and time of change."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
    }


def assert_refused(command: Command, folder: Path, *arguments: object, says: str) -> None:
    """Exit code 2, one line that says why, and the folder as it was."""
    before = listing(folder)
    ran = command(*arguments)
    assert (ran.code, ran.out) == (2, ""), ran
    lines = [line for line in ran.err.splitlines() if not line.endswith(" ...")]
    assert len(lines) == 1, ran.err
    assert lines[0].startswith("spa-prune: ")
    assert says in lines[0]
    assert "Traceback" not in ran.err
    assert listing(folder) == before


# --- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"hello, this is not a network", b"PK\x03\x04" + bytes(100), os.urandom(5000),
     json.dumps({"a": 1}).encode()],
    ids=["empty", "zero", "text", "zip", "noise", "json"],
)  # fmt: skip
def test_a_file_that_is_not_onnx(command: Command, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="is not an ONNX model")
    assert_refused(command, tmp_path, "inspect", path, says="is not an ONNX model")


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999])
def test_a_truncated_file(command: Command, tmp_path: Path, share: float) -> None:
    path = tmp_path / "model.onnx"
    content = network(BIG).SerializeToString()
    path.write_bytes(content[: int(len(content) * share)])
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="model.onnx")


def test_every_truncation_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    content = network(MLP).SerializeToString()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError):
            spa_graph.prune(path, flops=0.5, verify=False)


def test_a_missing_file(command: Command, tmp_path: Path) -> None:
    assert_refused(command, tmp_path, tmp_path / "no.onnx", "--flops", 0.5, says="no such file")


def test_a_folder(command: Command, tmp_path: Path) -> None:
    assert_refused(command, tmp_path, tmp_path, "--flops", 0.5, says="Is a directory")


def test_a_mistyped_command(command: Command, tmp_path: Path) -> None:
    assert_refused(command, tmp_path, "inspekt", "--flops", 0.5, says="no such file: inspekt")


# --- external data -------------------------------------------------------------------------------


def external_model(folder: Path, location: str = "weights.bin") -> Path:
    """BIG with its weights in a file of their own."""
    path = folder / "model.onnx"
    onnx.save(
        network(BIG), path, save_as_external_data=True, location=location, size_threshold=0
    )
    return path


def redirect(path: Path, location: str) -> None:
    """Let every weight of a model point to another data file."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


def test_missing_external_data(command: Command, tmp_path: Path) -> None:
    path = external_model(tmp_path)
    (tmp_path / "weights.bin").unlink()
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="weights.bin of weight `w1` is missing")


def test_truncated_external_data(command: Command, tmp_path: Path) -> None:
    path = external_model(tmp_path)
    os.truncate(tmp_path / "weights.bin", 64 * 64 * 4 - 1)
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="weights.bin is truncated")


@pytest.mark.parametrize("form", ["relative", "absolute", "dotted", "symlink", "linked folder"])
def test_external_data_outside_the_models_folder(
    command: Command, tmp_path: Path, form: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external_model(folder)
    secret = tmp_path / "secret" / "weights.bin"
    secret.parent.mkdir()
    (folder / "weights.bin").rename(secret)
    location = {"relative": "../secret/weights.bin", "absolute": str(secret),
                "dotted": "./x/../../secret/weights.bin", "symlink": "link.bin",
                "linked folder": "linked/weights.bin"}[form]  # fmt: skip
    (folder / "link.bin").symlink_to(secret)
    (folder / "linked").symlink_to(secret.parent, target_is_directory=True)
    redirect(path, location)
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="outside the model's folder")


def test_external_data_in_a_subgraph_and_in_a_constant_is_checked_too(
    command: Command, tmp_path: Path
) -> None:
    text = """
    net (float[N,4] x) => (float[N,2] y) <float[4,8] w1, float[8,2] w2> {
        c = Constant<value = float[8] {1, 2, 3, 4, 5, 6, 7, 8}>()
        h = MatMul(x, w1)
        s = Add(h, c)
        y = MatMul(s, w2)
    }
    """
    model = network(text)
    tensor = model.graph.node[0].attribute[0].t
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    path = tmp_path / "model" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(model.SerializeToString())
    (tmp_path / "secret.bin").write_bytes(bytes(32))
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="outside the model's folder")


# --- the network ---------------------------------------------------------------------------------


def test_an_empty_graph(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(network("net (float[4] x) => (float[4] x) { }").SerializeToString())
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="no operators")


def test_no_prunable_channel(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    text = "net (float[N,4] x) => (float[N,3] y) <float[4,3] w> { y = MatMul(x, w) }"
    path.write_bytes(network(text).SerializeToString())
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="no prunable channel: is graph")


def test_a_network_without_weights(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(network("net (float[N,4] x) => (float[N,4] y) { y = Relu(x) }").SerializeToString())
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="no prunable channel")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("criterion", ["l1", "l2", "linf", "fpgm", "lamp", "bn-scale", "random"])
def test_weights_that_are_not_numbers(
    command: Command, tmp_path: Path, value: float, criterion: str
) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    weight[2, 5] = value
    path = tmp_path / "model.onnx"
    path.write_bytes(network(MLP, values={"w1": weight}).SerializeToString())
    arguments = (path, "--flops", 0.5, "--criterion", criterion)
    assert_refused(command, tmp_path, *arguments, says="weight `w1` holds NaN or infinity")


def test_an_unknown_operator_is_reported(command: Command, tmp_path: Path) -> None:
    text = """
    net (float[N,4] x) => (float[N,3] y) <float[4,8] w1, float[8,3] w2>
    { h = MatMul(x, w1) s = ai.acme.Secret(h) y = MatMul(s, w2) }
    """
    path = tmp_path / "model.onnx"
    path.write_bytes(network(text, imports=', "ai.acme" : 1').SerializeToString())
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="no rule for ai.acme::Secret")


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
def test_an_output_that_is_the_input(
    command: Command, chain: Path, option: str, form: str
) -> None:
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
        (("--round-to", "0"), "--round-to"),
        (("--min-channels", "0"), "--min-channels"),
        (("--seed", "x"), "--seed"),
        (("--input-shape", "x"), "--input-shape"),
        (("--input-shape", "x=1,2"), "has 4 axes"),
        (("--input-shape", "z=1,3,8,8"), "no input `z`"),
        (("--no-such-option",), "--no-such-option"),
        (("--criterion",), "--criterion"),
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_used(
    command: Command, chain: Path, arguments: tuple[str, ...], says: str
) -> None:
    assert_refused(command, chain.parent, chain, "--flops", 0.5, *arguments, says=says)


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
        ({"format": "spa-plan/1", "kept": {}, "kept_per_use": {"w1": [{"node": "a"}]}}, "malformed"),
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
    wider = network(CHAIN.replace("[8,3,3,3]", "[20,3,3,3]").replace("[8] b1", "[20] b1")
                    .replace("[12,8,3,3]", "[12,20,3,3]"))  # fmt: skip
    spa_graph.prune(wider, flops=0.5).plan.save(plan)
    assert_refused(command, chain.parent, "apply", chain, plan, says="the plan")
