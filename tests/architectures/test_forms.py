"""The same network in different forms has the same groups.

The small topologies are changed without torch. Large networks are exported from torch in every form
that its exporters know, and simplified; run with `pytest -m matrix`.
SPA_MODELS names a folder in which the plain exports stay for the next run.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession

import spa_graph
from spa_graph.models_zoo import catalogue
from spa_graph.models_zoo.architectures import (
    ARCHITECTURES,
    AXES,
    BATCH,
    OPSET,
    Exporter,
    export,
    write,
)
from spa_graph.models_zoo.topologies import TOPOLOGIES
from spa_graph.models_zoo.transformer_networks import LENGTH
from tests.architectures import forms
from tests.architectures.forms import Cost, Form, describe

# --- without torch ----------------------------------------------------------------------------

FORMS: dict[str, Form] = {
    "merged": lambda model: forms.merged(forms.alike(model)),
    "constant nodes": forms.constant_nodes,
    "fp16": forms.half,
    "opset 21": partial(forms.converted, opset=21),
    "newest opset": partial(forms.converted, opset=onnx.defs.onnx_opset_version()),
    "static": partial(forms.with_batch, batch=3),
}
WITH_BATCH_NORM = ("resnet", "resnext", "densenet", "mobilenet", "shufflenet", "unet", "yolo")


@cache
def _network(name: str) -> onnx.ModelProto:
    return TOPOLOGIES[name]()


@cache
def _groups(name: str) -> Counter[Cost]:
    return describe(spa_graph.analyze(_network(name)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_same_groups(name: str, form: str) -> None:
    assert describe(spa_graph.analyze(FORMS[form](_network(name)))) == _groups(name)


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_same_groups_with_fused_batch_norm(name: str) -> None:
    model = forms.fused(_network(name))
    assert describe(spa_graph.analyze(model)) == _groups(name)


def test_merged_form_shares_what_is_equal() -> None:
    network = _network("vit_fused")
    shared = forms.merged(forms.alike(network))
    assert len(shared.graph.initializer) < len(network.graph.initializer) - 20


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_prunes_fp16(name: str, tmp_path: Path) -> None:
    """Verified, within the tolerance of the type."""
    pruned = tmp_path / "pruned.onnx"
    result = spa_graph.prune(forms.half(_network(name)), flops=0.5, output=pruned)
    proof = result.report["verification"]
    assert proof["error"] <= proof["tolerated"]
    types = {t.data_type for t in onnx.load(pruned).graph.initializer if len(t.dims) > 1}
    assert onnx.TensorProto.FLOAT16 in types
    assert onnx.TensorProto.FLOAT not in types


# --- with torch -------------------------------------------------------------------------------

NETWORKS = (
    "resnet18", "mobilenet_v3_large", "densenet121", "shufflenet_v2_x1_0", "googlenet",
    "convnext_tiny", "vit_b_16", "swin_t", "lstm", "gru", "unet_groupnorm", "yolo", "gpt",
)  # fmt: skip
# An exporter's opset (0: its newest) and options.
EXPORTS: dict[str, tuple[Exporter, int, dict[str, bool]]] = {
    "dynamo, newest opset": ("dynamo", 0, {}),
    "dynamo, not optimised, BatchNorm apart": ("dynamo", 18, {"fuse": False}),
    "dynamo, static": ("dynamo", 18, {"dynamic_batch": False}),
    "torchscript": ("torchscript", 18, {}),
    "torchscript, oldest opset": ("torchscript", 13, {}),
    "torchscript, opset 17": ("torchscript", 17, {}),
    "torchscript, newest opset": ("torchscript", 0, {}),
    "torchscript, BatchNorm apart": ("torchscript", 18, {"fuse": False}),
    "torchscript, static": ("torchscript", 18, {"dynamic_batch": False}),
}
# (network, form): why its groups differ; the test fails if they no longer do.
DIFFERENCES: dict[tuple[str, str], str] = {
    ("transformers/bert", "torchscript"): "the head's tied weight is stored twice: transposed",
    ("transformers/deberta_v2", "torchscript"): "dynamo has one Expand of positions for all layers",
}


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    simplified: onnx.ModelProto = pytest.importorskip("onnxsim").simplify(model)[0]
    return simplified


CHANGES: dict[str, Form] = {
    "simplified": _simplified,
    "merged": lambda model: forms.merged(forms.alike(model)),
    "fp16": forms.half,
}


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Exporter], Path]:
    """Exports as they come."""
    folder = Path(os.environ.get("SPA_MODELS") or tmp_path_factory.mktemp("models"))
    return lambda name, exporter: export(name, folder, exporter)


def _assert_same(name: str, form: str, found: Counter[Cost], want: Counter[Cost]) -> None:
    if (name, form) in DIFFERENCES:
        assert found != want, f"is the same now: not {DIFFERENCES[name, form]}"
    else:
        assert found == want


@pytest.mark.matrix
@pytest.mark.parametrize("form", EXPORTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_exports_have_the_same_groups(
    name: str, form: str, plain: Callable[[str, Exporter], Path], tmp_path: Path
) -> None:
    exporter, opset, options = EXPORTS[form]
    works = ARCHITECTURES[name].opsets(exporter)
    opset = max(opset, works[0]) if opset else works[-1]
    with _removed(export(name, tmp_path, exporter, opset, **options)) as path:
        found = describe(spa_graph.analyze(path))
    _assert_same(name, form, found, describe(spa_graph.analyze(plain(name, "dynamo"))))


@contextmanager
def _removed(path: Path) -> Iterator[Path]:
    """A file that is removed afterwards."""
    yield path
    path.unlink()


@pytest.mark.matrix
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", NETWORKS)
def test_changed_exports_have_the_same_groups(
    name: str, exporter: Exporter, change: str, plain: Callable[[str, Exporter], Path]
) -> None:
    model = CHANGES[change](onnx.load(plain(name, exporter)))
    found, want = (describe(spa_graph.analyze(m)) for m in (model, plain(name, "dynamo")))
    _assert_same(name, f"{exporter}, {change}", found, want)


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x1_0", "yolo", "gpt", "lstm"])
def test_prunes_large_fp16(
    name: str, plain: Callable[[str, Exporter], Path], tmp_path: Path
) -> None:
    model = forms.half(onnx.load(plain(name, "torchscript")))
    result = spa_graph.prune(model, flops=0.5, output=tmp_path / "pruned.onnx")
    proof = result.report["verification"]
    assert proof["error"] <= proof["tolerated"]


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["shufflenet_v2_x1_0", "lstm", "gpt", "convnext_tiny"])
def test_prunes_unoptimised_exports(name: str, tmp_path: Path) -> None:
    """Their splits are lists, their zero biases and initial states computed."""
    with _removed(export(name, tmp_path, "dynamo", fuse=False)) as path:
        result = spa_graph.prune(path, flops=0.5, output=tmp_path / "pruned.onnx")
    assert result.report["ratio"]["flops"] <= 0.5


# Asked for less than opset 18, dynamo has onnx's converter lower its graph, and keeps 18 where that
# fails: no opset 13 has LayerNormalization, and the converter lacks Pad, Identity and more.
# (network, opset asked for): why onnx refuses the file, "" if it doesn't.
LOWERED = {
    ("unet_groupnorm", 17): "",
    ("vit_b_16", 17): "",
    ("yolo", 17): "Unrecognized attribute: num_outputs for operator Split",
}


@pytest.mark.matrix
@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("name", NETWORKS)
def test_dynamo_below_its_opset(
    name: str, opset: int, plain: Callable[[str, Exporter], Path], tmp_path: Path
) -> None:
    with _removed(tmp_path / "network.onnx") as path:
        write(ARCHITECTURES[name].build(), path, "dynamo", opset, dynamic=True, fuse=True)
        model = onnx.load(path)
    written = {entry.domain: entry.version for entry in model.opset_import}
    assert written == {"": opset if (name, opset) in LOWERED else 18}
    if refused := LOWERED.get((name, opset)):
        with pytest.raises(onnx.checker.ValidationError, match=refused):
            onnx.checker.check_model(model)
    else:
        found, want = (describe(spa_graph.analyze(m)) for m in (model, plain(name, "dynamo")))
        assert found == want


TRANSFORMERS = (
    "bloom", "deberta_v2", "falcon", "gemma", "gpt2", "mixtral", "phi3", "qwen3", "swin", "t5",
    "whisper",
)  # fmt: skip


@pytest.mark.matrix
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_both_exporters_of_transformers(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    key, found = f"transformers/{name}", {}
    for exporter in ("dynamo", "torchscript"):
        with _removed(tmp_path / f"{exporter}.onnx") as path:
            write(catalogue.entry(key).build(), path, exporter, OPSET, dynamic=True, fuse=True)
            found[exporter] = describe(spa_graph.analyze(path))
    _assert_same(key, "torchscript", found["torchscript"], found["dynamo"])


# How many of its inputs each gets. Without a mask, encoders make one from the tokens' shape.
SEQUENCES = {
    "transformers/bert": 1,
    "transformers/bert_eager": 1,
    "transformers/roberta": 2,
    "transformers/gpt2": 2,
    "transformers/llama": 2,
    "own/lstm": 1,
    "own/gru": 1,
    "own/rnn": 1,
}
# dynamo knows no RNN operator: it writes each step of a fixed length, with a copy of the weights.
UNROLLED = "own/rnn"


def _write_sequence(key: str, path: Path, exporter: Exporter, dynamic: int) -> Path:
    """Export with so many free axes, and see that they are."""
    suite = key.partition("/")[0]
    if suite != "own":
        pytest.importorskip(suite)
    if exporter == "dynamo" and suite == "own":
        # After some other exports in the same process, those of recurrent layers keep a fixed
        # sequence and don't say so; what torch remembers there wasn't found.
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            process.submit(_write, key, path, exporter, dynamic).result()
    else:
        _write(key, path, exporter, dynamic)
    for value in onnx.load(path).graph.input:
        sizes = [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        assert sizes == [*AXES[:dynamic], *(BATCH, LENGTH)[dynamic:]]
    return path


def _write(key: str, path: Path, exporter: Exporter, dynamic: int) -> None:
    module, inputs, names = catalogue.entry(key).build()
    given = SEQUENCES[key]
    write((module, inputs[:given], names[:given]), path, exporter, OPSET, dynamic, fuse=True)


@pytest.fixture(scope="session")
def static(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Counter[Cost]]:
    """The groups of dynamo's export with fixed axes."""
    path = tmp_path_factory.mktemp("static") / "network.onnx"
    return cache(
        lambda key: describe(spa_graph.analyze(_write_sequence(key, path, "dynamo", dynamic=0)))
    )


@pytest.mark.matrix
@pytest.mark.parametrize("dynamic", [1, 2], ids=["batch", "batch and sequence"])
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("key", [key for key in SEQUENCES if key != UNROLLED])
def test_dynamic_batch_and_sequence(
    key: str,
    exporter: Exporter,
    dynamic: int,
    static: Callable[[str], Counter[Cost]],
    tmp_path: Path,
) -> None:
    want = static(key)
    path = _write_sequence(key, tmp_path / "network.onnx", exporter, dynamic)
    _assert_same(key, exporter, describe(spa_graph.analyze(path)), want)


@pytest.mark.matrix
@pytest.mark.parametrize("dynamic", [1, 2], ids=["batch", "batch and sequence"])
def test_dynamic_batch_and_sequence_of_an_rnn(dynamic: int, tmp_path: Path) -> None:
    found, want = (
        describe(spa_graph.analyze(_write_sequence(UNROLLED, path, "torchscript", axes)))
        for path, axes in ((tmp_path / "free.onnx", dynamic), (tmp_path / "fixed.onnx", 0))
    )
    assert found == want


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("key", "exporter"),
    [
        (key, exporter)
        for key in ("transformers/gpt2", "transformers/llama", "own/lstm", "own/gru", UNROLLED)
        for exporter in ("dynamo", "torchscript")
        if (key, exporter) != (UNROLLED, "dynamo")
    ],
)
def test_prunes_dynamic_sequence(key: str, exporter: Exporter, tmp_path: Path) -> None:
    """Proven, and what was pruned still takes any batch and length."""
    path = _write_sequence(key, tmp_path / "network.onnx", exporter, dynamic=2)
    result = spa_graph.prune(path, flops=0.5, output=tmp_path / "pruned.onnx")
    assert result.report["ratio"]["flops"] <= 0.5
    proof = result.report["verification"]
    assert proof["error"] <= proof["tolerated"]
    session = InferenceSession(tmp_path / "pruned.onnx", providers=["CPUExecutionProvider"])
    tokens = np.ones((3, 11), np.int64)
    (output,) = session.run(None, {value.name: tokens for value in session.get_inputs()})
    assert output.shape[:-1] in ((3,), (3, 11))
