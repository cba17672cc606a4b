"""What all commands have in common: help with examples that parse, JSON, silence, completion."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from rich.console import Console

from spa_graph.cli import cli
from spa_graph.console import progress as shown
from tests.conftest import Command

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = sorted(cli.commands)
ANSWERING = [name for name in COMMANDS if name != "completion"]


def examples(command: click.Command) -> list[list[str]]:
    """The command lines of a help text, without what a shell does with them."""
    text = (command.help or "").replace("\\\n", " ")
    lines = re.findall(r"spa-prune [^`\n]*", text)
    return [shlex.split(re.split(r"\||>|   |\)", line)[0])[1:] for line in lines]


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_of_the_help_parse(name: str) -> None:
    command = cli.commands[name]
    assert "Examples:" in (command.help or "")
    lines = examples(command)
    assert lines
    for arguments in lines:
        with cli.make_context("spa-prune", list(arguments)) as context:
            chosen, found, rest = cli.resolve_command(context, context._protected_args)
            assert found is command, (chosen, arguments)
            found.make_context(name, [*rest, *context.args], parent=context)


DOCS = ("README.md", "docs/recipes.md", "docs/cluster.md", "docs/latency.md")


@pytest.mark.parametrize("name", DOCS)
def test_commands_in_the_docs_parse(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(?:    |      - run: )spa-prune (.*)$", text, re.M)
    assert lines
    for line in lines:
        arguments = shlex.split(re.split(r" \| | > |   #|    [a-z#]", line)[0])
        with cli.make_context("spa-prune", arguments) as context:
            _, found, rest = cli.resolve_command(context, context._protected_args)
            assert found is not None
            found.make_context(found.name, [*rest, *context.args], parent=context)


@pytest.mark.parametrize("name", ANSWERING)
def test_every_command_answers_machines_and_can_be_silent(name: str) -> None:
    options = {option for each in cli.commands[name].params for option in each.opts}
    assert {"--json", "--quiet"} <= options


@pytest.mark.usefixtures("chain")
def test_json_of_a_run_is_its_report(process: Command) -> None:
    options = ("--flops", 0.5, "--latency-seconds", 0, "--report", "r.json")
    ran = process("chain.onnx", *options, "--json", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    data = json.loads(ran.out)
    assert data["ratio"]["flops"] <= 0.5
    assert {"kept", "removed", "edges", "groups"} == set(data["importance"])
    removed = data["before"]["channels"] - data["after"]["channels"]
    assert (sum(data["importance"]["removed"]), sum(data["importance"]["kept"])) == (
        removed,
        data["after"]["channels"],
    )


def test_the_demo_as_json(process: Command) -> None:
    ran = process("demo", "--json", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    accuracy = json.loads(ran.out)["accuracy"]
    assert accuracy["before"] == pytest.approx(0.985)
    assert 0.9 < accuracy["after"] <= 1


@pytest.mark.usefixtures("chain")
def test_inspect_is_quiet_when_asked(process: Command) -> None:
    ran = process("inspect", "chain.onnx", "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script(process: Command, shell: str) -> None:
    ran = process("completion", shell)
    assert (ran.code, ran.err) == (0, "")
    assert "_SPA_PRUNE_COMPLETE" in ran.out
    assert "spa-prune" in ran.out


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("spa-prune be", ["be", "bench"]),  # or a network of that name
        ("spa-prune mod", ["mod"]),
        ("spa-prune --ver", ["--version"]),
        ("spa-prune sweep mod", ["mod"]),
        ("spa-prune model.onnx --calibrate cal", ["cal"]),
        ("spa-prune sweep model.onnx --criterion l1,fp", ["l1,fpgm"]),
        ("spa-prune model.onnx --scope he", ["heads"]),
        ("spa-prune model.onnx --fl", ["--flops"]),
        ("spa-prune sweep model.onnx --back", ["--backend"]),
        ("spa-prune sweep model.onnx --backend d", ["dask"]),
        ("spa-prune model.onnx --allocation g", ["global"]),
    ],
)
def test_what_is_completed(words: str, found: list[str]) -> None:
    environment = os.environ | {
        "_SPA_PRUNE_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run(
        [sys.executable, "-m", "spa_graph"],
        env=environment, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line.partition(",")[2] for line in done.stdout.splitlines()] == found


def test_bars_on_a_terminal_tell_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()

    def terminal(**_options: object) -> Console:
        return Console(file=screen, force_terminal=True, width=120, highlight=False, markup=False)

    monkeypatch.setattr("spa_graph.console.bars.Console", terminal)
    with shown(False) as tell:
        assert tell is not None
        tell("measure", 0, 1)
        for number in np.arange(1, 5).tolist():
            tell("measure", number, 4, f"part {number}")
    text = screen.getvalue()
    assert "measure" in text
    assert "4/4" in text
    assert text.count("0:00:00") >= 2  # what has passed, and what is left


@pytest.mark.usefixtures("chain")
def test_plain_text_where_there_is_no_terminal(process: Command, tmp_path: Path) -> None:
    ran = process("chain.onnx", "--flops", 0.5, "--latency-seconds", 0)
    assert ran.code == 0
    assert "\x1b" not in ran.out + ran.err
    assert (tmp_path / "chain.pruned.onnx").exists()
