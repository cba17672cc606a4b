"""Fixtures that more than one test file uses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from spa_graph import cli
from tests.models import CHAIN, network


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str


Command = Callable[..., Ran]


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its size and time of change; but Python's own of modules."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
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


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `spa-prune ARGS` in this process."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["spa-prune", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0  # None is success
        else:
            code = 0
        assert isinstance(code, int), code
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def process(tmp_path: Path) -> Command:
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
