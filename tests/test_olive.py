"""spa-prune as a pass of Olive, in real workflows; needs `pip install 'spa-prune[olive]'`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import spa_graph
from tests.models import CHAIN, network, outputs, random_feeds, stored

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
pytest.importorskip("olive", reason="olive-ai is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # Olive's own


def workflow(folder: Path, **options: Any) -> Any:
    """Run a workflow of this pass alone; what Olive gives back."""
    from olive.workflows import run as run_workflow

    from spa_graph.integrations.olive import package_config

    onnx.save(network(CHAIN), folder / "chain.onnx")
    search = options.pop("search", None)
    configuration = {
        "input_model": {"type": "ONNXModel", "model_path": str(folder / "chain.onnx")},
        "passes": {"prune": {"type": "SPAPrune", **options}},
        "output_dir": str(folder / "out"),
        "cache_dir": str(folder / "cache"),
    }
    if search is not None:
        configuration |= search
    return run_workflow(configuration, package_config=package_config())


def written(folder: Path) -> onnx.ModelProto:
    (path,) = (folder / "out").rglob("*.onnx")
    return onnx.load(path)


@pytest.mark.parametrize("budget", [{"flops": 0.7}, {"params": 0.7}, {"ratio": 0.5}])
def test_a_workflow_gives_what_prune_gives(tmp_path: Path, budget: dict[str, float]) -> None:
    workflow(tmp_path, **budget, criterion="l2", round_to=1, exclude=["w3"])
    options: dict[str, Any] = {**budget, "criterion": "l2", "round_to": 1, "exclude": ("w3",)}
    expected = spa_graph.prune(network(CHAIN), **options).model
    got = stored(written(tmp_path))
    assert got.keys() == stored(expected).keys()
    assert all(np.array_equal(got[name], array) for name, array in stored(expected).items())


def test_samples_can_be_given(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=samples)
    workflow(tmp_path, flops=0.5, calibrate=str(tmp_path / "samples.npz"))
    pruned, original = written(tmp_path), network(CHAIN)
    assert stored(pruned)["w1"].size < stored(original)["w1"].size
    feeds = random_feeds(original)
    assert outputs(pruned, feeds)[0].shape == outputs(original, feeds)[0].shape


def test_a_budget_that_can_not_be_met_gives_no_model(tmp_path: Path) -> None:
    workflow(tmp_path, flops=0.0001)
    assert not list((tmp_path / "out").rglob("*.onnx"))


def test_the_package_configuration_is_olives_own_and_this_pass(tmp_path: Path) -> None:
    from olive.package_config import OlivePackageConfig

    from spa_graph.integrations.olive import FLOPS, SPAPrune, package_config

    own = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text())
    merged = package_config()
    assert merged["passes"].keys() - own["passes"].keys() == {"SPAPrune"}
    path = tmp_path / "merged.json"
    path.write_text(json.dumps(merged))
    configuration = OlivePackageConfig.parse_file_or_obj(path)
    assert configuration.import_pass_module("SPAPrune") is SPAPrune
    from olive.hardware import DEFAULT_CPU_ACCELERATOR

    _, fixed, searched = SPAPrune.get_config_params(DEFAULT_CPU_ACCELERATOR, {})
    assert searched["flops"].get_support() == list(FLOPS)
    assert fixed["min_channels"] == 1
