"""Fixtures that more than one test file uses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from tests.models import CHAIN, network

from spa_graph import cli


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """Run `spa-prune ARGS` in this process."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["spa-prune", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        else:
            code = 0
        assert isinstance(code, int), code
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., Ran]:
    """Run `spa-prune ARGS` as a process of its own, in the test's folder."""

    def run(*arguments: object) -> Ran:
        line = [sys.executable, "-m", "spa_graph", *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=300)
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """The network CHAIN as the file `chain.onnx` in the test's folder."""
    path = tmp_path / "chain.onnx"
    onnx.save(network(CHAIN), path)
    return path
