"""Source distribution -> wheel -> fresh environment -> the command runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path

import onnx
import pytest

import spa_graph
from tests.models import CHAIN, network

ROOT = Path(__file__).parents[1]
SDIST = "from setuptools import build_meta; build_meta.build_sdist('dist')"
WHEEL = "from setuptools import build_meta; build_meta.build_wheel('dist')"
NOT_SOURCE = shutil.ignore_patterns(
    ".*", "*.egg-info", "build", "dist", "__pycache__", "*.pyc", "shared"
)


def run(*line: object, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed; its output."""
    done = subprocess.run(
        [str(part) for part in line],
        capture_output=True, text=True, timeout=300, cwd=cwd, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built from a copy of the repository."""
    copy = tmp_path_factory.mktemp("source") / "repository"
    shutil.copytree(ROOT, copy, ignore=NOT_SOURCE, symlinks=True)
    run(sys.executable, "-c", SDIST, cwd=copy)
    (built,) = (copy / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from nothing but the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not before 3.11.4
        archive.extractall(folder, **safe)
    (source,) = folder.iterdir()
    run(sys.executable, "-c", WHEEL, cwd=source)
    (built,) = (source / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment that has the wheel, and the dependencies of this one.

    They are lent by a path file, which doesn't run the path files of the lender: an editable
    spa_graph stays behind.
    """
    pytest.importorskip("pip")
    home = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    pip = (sys.executable, "-m", "pip", "--python", home / "bin" / "python")
    run(*pip, "install", "--no-deps", "--no-index", "--no-compile", wheel, cwd=home)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {
        "spa_graph",
        "spa_prune.py",
        f"spa_prune-{spa_graph.__version__}.dist-info",
    }
    needed = (
        "py.typed",
        "models_zoo/demo/resnet20_mnist.onnx",
        "models_zoo/demo/heldout.npz",
        "pictures/page.html",
    )
    assert {f"spa_graph/{name}" for name in needed} <= names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "spa_graph").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == {*modules, "spa_prune.py"}
    assert wheel.stat().st_size < 3_000_000


def test_the_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        folder = f"spa_prune-{spa_graph.__version__}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{folder}/METADATA").decode())
        scripts = archive.read(f"{folder}/entry_points.txt").decode()
        assert any(name.startswith(f"{folder}/licenses/LICENSE") for name in archive.namelist())
    assert metadata["Name"] == "spa-prune"
    assert metadata["Version"] == spa_graph.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "spa-prune = spa_prune:main" in scripts
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert not [line for line in needed if line.startswith(("torch", "pytest"))]
    assert any(line.startswith("onnxruntime") for line in needed)


def test_the_source_distribution_has_what_builders_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "spa_graph/py.typed"} <= names


@pytest.fixture
def installed_command(installed: Path, tmp_path: Path) -> Callable[..., str]:
    return lambda *arguments: run(installed / "spa-prune", *arguments, cwd=tmp_path, PYTHONPATH="")


def test_the_installed_command_prunes(
    installed_command: Callable[..., str], tmp_path: Path
) -> None:
    onnx.save(network(CHAIN), tmp_path / "model.onnx")
    assert spa_graph.__version__ in installed_command("--version")
    arguments = ("model.onnx", "--flops", 0.5, "--latency-seconds", 0.05)
    assert "wrote model.pruned.onnx" in installed_command(*arguments)
    onnx.checker.check_model(onnx.load(tmp_path / "model.pruned.onnx"))


def test_the_installed_package_is_the_wheels(installed: Path, tmp_path: Path) -> None:
    program = (
        "import importlib.metadata, spa_graph;"
        "print(spa_graph.__file__, importlib.metadata.version('spa-prune'))"
    )
    where, version = run(installed / "python", "-c", program, cwd=tmp_path, PYTHONPATH="").split()
    assert Path(where).is_relative_to(installed.parent)
    assert version == spa_graph.__version__


def test_the_installed_demo_runs(installed_command: Callable[..., str]) -> None:
    assert "accuracy on held-out digits" in installed_command("demo")
