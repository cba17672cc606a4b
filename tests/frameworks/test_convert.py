"""Files of other frameworks as input of the command; converted where the exporter is there."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.conftest import Command, assert_refused
from tests.models import outputs, random_feeds

PIP = "pip install 'spa-prune[{}]'"


def a_file(folder: Path, name: str) -> Path:
    if name == "net":
        (folder / name).mkdir()
        (folder / name / "saved_model.pb").write_bytes(b"x")
    else:
        (folder / name).write_bytes(b"x")
    return folder / name


@pytest.mark.parametrize(
    ("name", "extra"),
    [("net.keras", "tensorflow"), ("net", "tensorflow"), ("net.tflite", "tensorflow"),
     ("net.pt2", "torch")],
)  # fmt: skip
def test_without_the_exporter(
    name: str, extra: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    path = a_file(tmp_path, name)
    assert_refused(command, tmp_path, path, "--flops", 0.5, says=PIP.format(extra))


def test_a_converted_file_is_not_replaced(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: True)
    path = a_file(tmp_path, "net.tflite")
    (tmp_path / "net.onnx").write_bytes(b"mine")
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="net.onnx, which exists")


def test_a_torch_export_file(tmp_path: Path, process: Command) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16), torch.nn.Linear(16, 4)
    ).eval()
    x = torch.randn(2, 8)
    shapes = ({0: torch.export.Dim("n")},)
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=shapes), tmp_path / "net.pt2")
    ran = process("net.pt2", "--flops", 0.5, "--latency-seconds", 0)
    assert ran.code == 0, ran.err
    assert "converted the torch.export file net.pt2 to net.onnx" in ran.err
    converted = onnx.load(tmp_path / "net.onnx")
    name = converted.graph.input[0].name
    with torch.no_grad():
        want = model(x).numpy()
    assert abs(outputs(converted, {name: x.numpy()})[0] - want).max() < 1e-5
    pruned = onnx.load(tmp_path / "net.pruned.onnx")
    assert outputs(pruned, random_feeds(pruned, dynamic=3))[0].shape == (3, 4)

    written = (tmp_path / "net.onnx").stat().st_mtime_ns
    again = process("inspect", "net.pt2")
    assert again.code == 0, again.err
    assert "net.onnx is the torch.export file net.pt2, converted" in again.err
    assert (tmp_path / "net.onnx").stat().st_mtime_ns == written


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("way", ["script", "trace"])
def test_a_torchscript_file(way: str, tmp_path: Path, process: Command) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)

    class Tagger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(20, 24)
            self.hidden, self.tags = torch.nn.Linear(25, 32), torch.nn.Linear(32, 3)

        def forward(self, tokens: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
            both = torch.cat([self.words(tokens), marks.unsqueeze(-1)], -1)
            return self.tags(torch.relu(self.hidden(both)))

    model = Tagger().eval()
    feeds = torch.randint(20, (2, 5)), torch.randn(2, 5)
    compiled = torch.jit.script(model) if way == "script" else torch.jit.trace(model, feeds)
    compiled.save(tmp_path / "net.pt")
    options = ("--flops", 0.5, "--latency-seconds", 0)
    refused = process("net.pt", *options)
    assert refused.code != 0
    assert "--input-shape tokens=" in refused.err
    assert not (tmp_path / "net.onnx").exists()
    shapes = ("--input-shape", "tokens=2,5", "--input-shape", "marks=2,5")
    ran = process("net.pt", *options, *shapes)
    assert ran.code == 0, ran.err
    assert "converted the TorchScript file net.pt to net.onnx" in ran.err
    named = dict(zip(("tokens", "marks"), (each.numpy() for each in feeds), strict=True))
    with torch.no_grad():
        want = model(*feeds).numpy()
    assert abs(outputs(onnx.load(tmp_path / "net.onnx"), named)[0] - want).max() < 1e-5
    assert outputs(onnx.load(tmp_path / "net.pruned.onnx"), named)[0].shape == want.shape


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_file_that_does_not_run_on_these_sizes(
    tmp_path: Path, process: Command
) -> None:
    torch = pytest.importorskip("torch")
    torch.jit.script(torch.nn.Linear(8, 4)).save(tmp_path / "net.pt")
    ran = process("net.pt", "--flops", 0.5, "--input-shape", "input=2,7")
    assert ran.code != 0
    assert "doesn't run on inputs of these sizes" in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "net.onnx").exists()


def test_a_file_of_weights(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "net.pth"
    with zipfile.ZipFile(path, "w") as archive:  # what torch.save writes
        archive.writestr("net/data.pkl", b"")
        archive.writestr("net/data/0", b"")
    assert_refused(command, tmp_path, path, "--flops", 0.5, says="torch.export.save")


@pytest.mark.parametrize("form", ["keras", "saved_model", "tflite"])
def test_files_of_tensorflow(form: str, tmp_path: Path, process: Command) -> None:
    pytest.importorskip("tf2onnx")
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    # the exact one, by Erfc; that of TFLite is one operator, which tf2onnx doesn't know
    activation = "tanh" if form == "tflite" else "gelu"
    x = keras.layers.Dense(32, activation=activation)(inputs)
    x = keras.layers.Dense(16, activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(4)(x))
    assert_converts(model, form, tmp_path, process)


@pytest.mark.parametrize("form", ["keras", "saved_model"])
def test_convolutions_of_groups(form: str, tmp_path: Path, process: Command) -> None:
    """Keras has XLA compile them, each a function of its own."""
    pytest.importorskip("tf2onnx")
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(16, 3, activation="relu")(inputs)
    x = keras.layers.Conv2D(16, 3, groups=16, padding="same")(x)  # depthwise, as in ConvNeXt
    x = keras.layers.Conv2D(32, 3, groups=4, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(4)(x))
    assert_converts(model, form, tmp_path, process)


def assert_converts(model: Any, form: str, folder: Path, process: Command) -> None:
    """The command converts a Keras network to what computes the same, and prunes it."""
    name = {"keras": "net.keras", "saved_model": "net", "tflite": "net.tflite"}[form]
    if form == "keras":
        model.save(folder / name)
    else:
        kind = {"format": "tf_saved_model"} if form == "saved_model" else {"format": "litert"}
        model.export(folder / name, verbose=False, **kind)
    ran = process(name, "--flops", 0.5, "--latency-seconds", 0)
    assert ran.code == 0, ran.err
    converted, pruned = (onnx.load(folder / f"net{end}.onnx") for end in ("", ".pruned"))
    feeds = random_feeds(converted)
    want = model(next(iter(feeds.values()))).numpy()
    assert abs(outputs(converted, feeds)[0] - want).max() < 1e-5
    assert outputs(pruned, feeds)[0].shape == want.shape
