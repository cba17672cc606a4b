"""Files of other frameworks as input of the command; converted where the exporter is there."""

from __future__ import annotations

import importlib.util
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest

import spa_graph
from spa_graph.cli import network
from spa_graph.errors import ModelError
from spa_graph.frontends.convert import STAMP
from spa_graph.frontends.formats import SUFFIXES
from spa_graph.studies.opened import open_network
from tests.conftest import Command, assert_refused
from tests.models import CHAIN, outputs, random_feeds
from tests.models import network as network_of

MAGIC = b"\x89HDF\r\n\x1a\n"
DAMAGED = bytes(46) + b"PK\x05\x06\0\0\0\0\1\0\1\0\x2e\0\0\0\0\0\0\0\0\0"
"""The end of a zip file whose list of files is gone."""
BEGINNINGS = {
    ".keras": b"PK\x03\x04", ".h5": MAGIC + b"model_config", ".tflite": b"\x1c\0\0\0TFL3",
    ".pt2": b"PK\x03\x04",
}  # fmt: skip
PIP = "pip install 'spa-prune[{}]'"


def a_file(folder: Path, name: str) -> Path:
    if name == "net":
        (folder / name).mkdir()
        (folder / name / "saved_model.pb").write_bytes(b"x")
    else:
        (folder / name).write_bytes(BEGINNINGS[Path(name).suffix])
    return folder / name


@pytest.mark.parametrize(
    ("name", "extra"),
    [("net.keras", "tensorflow"), ("net", "tensorflow"), ("net.tflite", "tensorflow"),
     ("net.h5", "tensorflow"), ("net.pt2", "torch")],
)  # fmt: skip
def test_without_the_exporter(
    name: str, extra: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    path = a_file(tmp_path, name)
    says = PIP.format(extra)
    assert_refused(command, tmp_path, path, "--flops", 0.5, says=says)
    assert_refused(command, tmp_path, "bench", path, says=says)
    assert_refused(command, tmp_path, "compare", path, path, says=says)
    for function in (partial(spa_graph.prune, flops=0.5), open_network):
        with pytest.raises(ModelError, match=rf"`spa-prune inspect {path}` converts to net\.onnx"):
            function(path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("NET",), "give a budget"),
        (("NET", "--flops", 1.5), "--flops must lie between 0 and 1"),
        (("NET", "--flops", 0.5, "-o", "no/out.onnx"), "no does not exist"),
        (("NET", "--flops", 0.5, "-o", "NET", "--overwrite"), "inputs are never modified"),
        (("NET", "--flops", 0.5, "-o", "net.onnx"), "inputs are never modified"),
        (("NET", "--flops", 0.5, "--provider", "abacus"), "has no such provider"),
        (("NET", "--flops", 0.5, "--criterion", "wanda"), "`wanda` needs calibration data"),
        (("NET", "--flops", 0.5, "--criterion", "taylor"), "give --data and --loss"),
        (("NET", "--flops", 0.5, "--calibrate", "no.npz"), "no such file: no.npz"),
        (("NET", "--flops", 0.5, "--calibrate", "no:function"), "can't import no"),
        (("NET", "--flops", 0.5, "--calibrate", "data-free:guess"), "choose among"),
        (("NET", "--flops", 0.5, "--calibrate", "photos"), "no images in photos"),
        (("NET", "--flops", 0.5, "--calibrate", "photos", "--preprocess", "magic"), "`magic`"),
        (("NET", "--flops", 0.5, "--calibrate", "data-free", "--preprocess", "imagenet"),
         "a folder of images"),
        (("apply", "NET", "no.json"), "cannot read plan"),
        (("inspect", "NET", "--dot", "g", "--json"), "not JSON"),
        (("sensitivity", "NET"), "give calibration data"),
        (("sensitivity", "NET", "--calibrate", "no.npz"), "no such file: no.npz"),
        (("sweep", "NET", "--flops", "0.5"), "needs a measure of quality"),
        (("sweep", "NET", "--flops", "0.5", "--eval", "no:function"), "can't import no"),
        (("sweep", "NET", "--flops", "0.5", "--calibrate", "no.npz"), "no such file: no.npz"),
        (("sweep", "NET", "--flops", "0.5", "--calibrate", "data-free", "-o", "no/s"),
         "no does not exist"),
        (("bench", "NET", "--provider", "abacus"), "has no such provider"),
        (("bench", "NET", "--dynamic", "batch=0"), "from 1 on"),
        (("compare", "NET", "NET", "--data", "no.npz"), "no such file: no.npz"),
    ],
)  # fmt: skip
def test_options_are_checked_before_a_network_is_converted(
    arguments: tuple[object, ...],
    says: str,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def converting(*_arguments: object) -> bool:
        raise AssertionError("it was converted first")

    monkeypatch.setattr(network, "convert", converting)
    monkeypatch.chdir(tmp_path)
    a_file(tmp_path, "net.keras")
    (tmp_path / "photos").mkdir()
    given = ["net.keras" if each == "NET" else each for each in arguments]
    assert_refused(command, tmp_path, *given, says=says)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("net.h5", MAGIC + b"weights", "holds no Keras network, perhaps its weights alone"),
        ("net.keras", b"", "is empty"),
        ("net.pt", b"\x80\x02", "torch.export.save"),
        ("net.pt", DAMAGED, "is damaged"),
        ("net.safetensors", b"x" * 99, "weights without their network"),
        ("net.pdmodel", b"x" * 99, "paddle"),
        ("net.pkl", b"\x80\x04x", "`skl2onnx.to_onnx`"),
        ("saved_model.pb", b"x" * 99, "part of a SavedModel: give its folder"),
        ("net.h5", b"x" * 99, "is named as a Keras file, and is none either"),
        ("net.tflite", b"x" * 99, "is named as a TFLite file, and is none either"),
    ],
)
@pytest.mark.parametrize("verb", [("inspect",), ("bench",)])
def test_files_that_hold_no_network_that_could_be_converted(
    name: str,
    content: bytes,
    says: str,
    verb: tuple[str, ...],
    tmp_path: Path,
    command: Command,
) -> None:
    (tmp_path / name).write_bytes(content)
    assert_refused(command, tmp_path, *verb, tmp_path / name, says=says)


@pytest.mark.parametrize(
    ("holds", "says"),
    [((), "an empty folder"), (("net.onnx", "notes.txt"), "a folder without saved_model.pb")],
)
@pytest.mark.parametrize("verb", [("inspect",), ("bench",)])
def test_folders_that_are_no_saved_model(
    holds: tuple[str, ...], says: str, verb: tuple[str, ...], tmp_path: Path, command: Command
) -> None:
    (tmp_path / "net").mkdir()
    for name in holds:
        (tmp_path / "net" / name).write_bytes(b"x")
    assert_refused(command, tmp_path, *verb, tmp_path / "net", says=says)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".pt", ".pkl"])
def test_an_onnx_file_with_another_name(suffix: str, chain: Path, command: Command) -> None:
    """What is in the file counts."""
    path = chain.rename(chain.with_suffix(suffix))
    ran = command(path, "--flops", 0.5, "--latency-seconds", 0, "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert chain.with_suffix(".pruned.onnx").is_file()


def test_a_converted_file_is_not_replaced(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: True)
    path = a_file(tmp_path, "net.tflite")
    (tmp_path / "net.onnx").write_bytes(b"mine")
    says = "net.onnx, which exists, and was not made from it: move or rename one of them"
    assert_refused(command, tmp_path, path, "--flops", 0.5, says=says)


def test_the_conversion_of_an_earlier_file_is_not_taken(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: True)
    path = a_file(tmp_path, "net.tflite")
    model = network_of(CHAIN)
    model.metadata_props.add(key=STAMP, value="of another")
    onnx.save(model, tmp_path / "net.onnx")
    says = "net.onnx, which exists, and was made from another content"
    assert_refused(command, tmp_path, path, "--flops", 0.5, says=says)


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
    quiet = process("inspect", "net.pt2", "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    again = process("inspect", "net.pt2")
    assert again.code == 0, again.err
    assert "net.onnx is the torch.export file net.pt2, converted" in again.err
    for verb in ("bench", "compare"):
        options = ("--seconds", 0.05) if verb == "bench" else ()
        both = process(verb, "net.pt2", "net.pruned.onnx", *options)
        assert both.code == 0, both.err
        assert "net.onnx is the torch.export file net.pt2, converted" in both.err
    assert (tmp_path / "net.onnx").stat().st_mtime_ns == written


@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")  # of LSTM, about itself
def test_a_torch_export_file_of_a_module_in_training_mode(tmp_path: Path, process: Command) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv1d(4, 16, 1)
            self.norm, self.dropout = torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.5)
            self.attention = torch.nn.TransformerEncoderLayer(16, 2, 32, 0.3, batch_first=True)
            self.cells = torch.nn.LSTM(16, 8, 2, dropout=0.3, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.dropout(torch.relu(self.norm(self.first(x)))).transpose(1, 2)
            return self.cells(self.attention(x))[0].mean(1)

    model, x = Net().train(), torch.randn(2, 4, 6)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "net.pt2")
    ran = process("net.pt2", "--flops", 0.7, "--latency-seconds", 0)
    assert ran.code == 0, ran.err
    with torch.no_grad():
        want = model.eval()(x).numpy()
    assert abs(outputs(onnx.load(tmp_path / "net.onnx"), {"x": x.numpy()})[0] - want).max() < 1e-5


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
    misnamed = process("net.pt", *options, "--input-shape", "token=2,5")
    assert misnamed.code != 0
    says = "no input `token`: give the sizes of all its inputs, as in --input-shape tokens="
    assert says in misnamed.err and "--input-shape marks=" in misnamed.err
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
    other = process("inspect", "net.pt", "--input-shape", "token=2,5")
    assert other.code != 0
    assert "other options than --input-shape tokens=2,5 --input-shape marks=2,5" in other.err


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


@pytest.mark.parametrize("form", ["keras", "hdf5", "saved_model", "tflite"])
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


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_files_that_keras_can_not_load(name: str, tmp_path: Path, process: Command) -> None:
    """One needs a class, which stands in no file."""
    pytest.importorskip("tf2onnx")
    keras = pytest.importorskip("keras")

    class Twice(keras.layers.Layer):  # type: ignore[name-defined, misc]
        def call(self, x: Any) -> Any:
            return 2 * x

    inputs = keras.Input((8,))
    keras.Model(inputs, Twice()(keras.layers.Dense(16)(inputs))).save(tmp_path / name)
    ran = process(name, "--flops", 0.5)
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 1
    assert "Keras can't load it alone" in ran.err and "'Twice'" in ran.err
    assert "model.export('FOLDER')" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def assert_converts(model: Any, form: str, folder: Path, process: Command) -> None:
    """The command converts a Keras network to what computes the same, and prunes it."""
    name = {
        "keras": "net.keras", "hdf5": "net.h5", "saved_model": "net", "tflite": "net.tflite"
    }[form]  # fmt: skip
    if form in ("keras", "hdf5"):
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
