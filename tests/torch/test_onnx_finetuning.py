"""`spa-prune model.onnx --finetune EPOCHS --data train.npz`: trained in torch, back in ONNX."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

import spa_graph  # noqa: E402
from spa_graph.errors import OptionError, VerificationError  # noqa: E402
from spa_graph.models_zoo import demo  # noqa: E402
from spa_graph.passes import agreement  # noqa: E402
from spa_graph.passes.options import Options  # noqa: E402
from tests.models import network  # noqa: E402

TRAINED = 800
"""So many of the demo's digits are trained on; by the others accuracy is judged."""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "train.npz"
    images, labels = demo.load_heldout()
    np.savez(path, image=images[:TRAINED], labels=labels[:TRAINED])
    return path


def accuracy(path: Path) -> float:
    images, labels = demo.load_heldout()
    return demo.accuracy(path, images[TRAINED:], labels[TRAINED:])


def spa_prune(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spa_graph", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def signature(path: Path) -> Any:
    graph = onnx.load(path).graph
    return [v.SerializeToString() for v in (*graph.input, *graph.output)]


def test_accuracy_comes_back(digits: Path, tmp_path: Path) -> None:
    """By a real process, on the demo's network: better than before the training."""
    model = demo.model_path()
    budget = ("--flops", 0.3, "--criterion", "l1", "--latency-seconds", 0)
    plain, tuned, report = (tmp_path / name for name in ("a.onnx", "b.onnx", "b.json"))
    assert spa_prune(model, *budget, "-o", plain).returncode == 0
    ran = spa_prune(
        model, *budget, "-o", tuned, "--report", report, "--data", digits, "--finetune", 2,
        "--teacher",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "fine-tuned for 2 epochs: loss" in ran.stdout
    assert "verified: equals the original with zeroed channels" in ran.stdout
    assert accuracy(tuned) > accuracy(plain) + 0.05
    assert accuracy(tuned) > 0.9
    found = json.loads(report.read_text())
    first, last = found["finetune"]["losses"]
    assert last < first
    assert found["options"]["loss"] == "cross-entropy"
    assert found["options"]["teacher"] is True
    assert signature(tuned) == signature(plain) == signature(model)
    onnx.checker.check_model(onnx.load(tuned), full_check=True)
    shapes = [{i.name: i.dims for i in onnx.load(p).graph.initializer} for p in (plain, tuned)]
    assert shapes[0] == shapes[1]


LINEAR = """
linear (float[N,4] x) => (float[N,2] y) <float[4,8] w1, float[8] b1, float[8,2] w2>
{
    h = MatMul(x, w1)
    a = Add(h, b1)
    r = Relu(a)
    y = MatMul(r, w2)
}
"""


def samples(count: int) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((count, 4)).astype(np.float32)
    return {"x": x, "target": x[:, :2] + x[:, 2:]}


@pytest.mark.parametrize("count", [32, 33, 1])
def test_arrays_of_any_length(count: int) -> None:
    """A batch of one is left out, unless there is no other."""
    result = spa_graph.prune(
        network(LINEAR), flops=0.5, criterion="l1", data=samples(count), loss="mse", finetune=3
    )
    losses = result.report["finetune"]["losses"]
    assert len(losses) == 3
    assert all(np.isfinite(losses))


def test_the_same_seed_trains_alike() -> None:
    options: dict[str, Any] = {"flops": 0.5, "data": samples(64), "loss": "mse", "finetune": 2}
    runs = [spa_graph.prune(network(LINEAR), seed=s, **options) for s in (0, 0, 1)]
    losses = [run.report["finetune"]["losses"] for run in runs]
    assert losses[0] == losses[1] != losses[2]


def test_progress_tells_the_loss() -> None:
    said: list[tuple[str, int, int, str]] = []
    spa_graph.prune(
        network(LINEAR), flops=0.5, data=samples(8), loss="mse", finetune=2,
        progress=lambda *told: said.append(told),
    )  # fmt: skip
    own = [told for told in said if told[0] == "finetune" and told[3:]]
    assert [told[1:3] for told in own] == [(1, 2), (2, 2)]
    assert own[0][3].startswith("loss ")


def test_it_goes_with_calibration() -> None:
    data = samples(64)
    result = spa_graph.prune(
        network(LINEAR), flops=0.5, data=data, loss="mse", finetune=1, calibrate={"x": data["x"]}
    )
    assert result.report["calibration"]["reconstruction"]["layers"]
    assert result.report["finetune"]["losses"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"finetune": 1}, "--finetune needs --data"),
        ({"finetune": 0, "data": {}}, "--finetune must be at least 1"),
        ({"finetune": 1, "learning_rate": 0, "data": {}}, "--learning-rate positive"),
        ({"teacher": True}, "--teacher needs --finetune"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Options(flops=0.5, **options)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"x": np.zeros((4, 4), np.float32)}, "one for the targets"),
        ({"x": np.zeros((4, 4), np.float32), "t": np.zeros(3)}, "different numbers of samples"),
        ({"x": np.zeros((0, 4), np.float32), "t": np.zeros(0)}, "yields no batch"),
        ({"x": np.zeros((4, 4, 1), np.float32), "t": np.zeros(4)}, r"`x` has shape \[4, 4, 1\]"),
        ({"x": np.full((4, 4), np.nan, np.float32), "t": np.zeros(4)}, "`x` has NaN"),
        ("absent.npz", "cannot read --data absent.npz"),
    ],
)
def test_bad_data(data: Any, said: str, tmp_path: Path) -> None:
    output = tmp_path / "small.onnx"
    with pytest.raises(OptionError, match=said):
        spa_graph.prune(
            network(LINEAR), flops=0.5, criterion="l1", data=data, loss="mse", finetune=1,
            output=output,
        )  # fmt: skip
    assert not output.exists()


def test_a_network_that_torch_runs_otherwise_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*_: Any) -> list[Any]:
        return [np.full((1, 2), 7, np.float32)]

    monkeypatch.setattr(agreement, "run", other)
    with pytest.raises(VerificationError, match="torch and ONNX Runtime disagree"):
        spa_graph.prune(network(LINEAR), flops=0.5, data=samples(8), loss="mse", finetune=1)


def test_without_torch_one_line(digits: Path, tmp_path: Path) -> None:
    """A process in which torch can't be imported."""
    code = (
        "import sys; sys.modules['torch'] = None; from spa_graph.cli.app import main; "
        "sys.argv = ['spa-prune', *sys.argv[1:]]; main()"
    )
    output = tmp_path / "small.onnx"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(demo.model_path()), "--flops", "0.5", "--data",
         str(digits), "--finetune", "1", "--criterion", "l1", "-o", str(output)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 2
    assert ran.stderr.strip() == (
        "spa-prune: --finetune trains the network in torch: pip install 'spa-prune[torch]'"
    )
    assert not output.exists()
