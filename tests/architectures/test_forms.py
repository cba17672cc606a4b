"""The same network in different forms has the same groups.

The small topologies are changed without torch. Large networks are exported from torch in every form
that its exporters know, and simplified; run with `pytest -m matrix`.
SPA_MODELS names a folder in which the plain exports stay for the next run.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
import pytest

import spa_graph
from spa_graph.models_zoo.architectures import ARCHITECTURES, Built, Exporter, export
from spa_graph.models_zoo.topologies import TOPOLOGIES
from spa_graph.runtime.sessions import open_session, run
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
DIFFERENCES: dict[tuple[str, str], str] = {}


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


# --- free batch and sequence ------------------------------------------------------------------


def _transformer(kind: str, **settings: object) -> Built:
    """One of transformers' networks, small, with a linear head where it has none."""
    import torch
    from torch import nn

    from spa_graph.models_zoo.architectures import import_torchvision

    import_torchvision()  # transformers imports it, and may need the stand-ins
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=500,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        return_dict=False,
        use_cache=False,
        attn_implementation="eager",
        **settings,
    )

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = getattr(transformers, f"{kind}Model")(config)
            self.head = nn.Linear(48, 10)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            # without one, decoders look for packed sequences, in a way that TorchScript lacks
            mask = torch.ones_like(tokens)
            return self.head(self.body(tokens, attention_mask=mask)[0])

    torch.manual_seed(0)
    return Tagger().eval(), (torch.randint(0, 500, (2, 16)),), ("tokens",)


OF_ANY_LENGTH: dict[str, Callable[[], Built]] = {
    "encoder": partial(_transformer, "Bert"),
    "decoder": partial(_transformer, "GPTNeoX"),
    "decoder, grouped queries": partial(_transformer, "Llama", num_key_value_heads=2),
    "lstm": ARCHITECTURES["lstm"].build,
    "gru": ARCHITECTURES["gru"].build,
}


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore")  # the exporters have many
@pytest.mark.parametrize("axes", [("batch",), ("batch", "sequence")])
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", OF_ANY_LENGTH)
def test_dynamic_batch_and_sequence(
    name: str, exporter: Exporter, axes: tuple[str, ...], tmp_path: Path
) -> None:
    static, dynamic = tmp_path / "static.onnx", tmp_path / "dynamic.onnx"
    _export_text(name, static, "dynamo", ())
    _export_text(name, dynamic, exporter, axes)
    want, found = (describe(spa_graph.analyze(path)) for path in (static, dynamic))
    assert found == want


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", OF_ANY_LENGTH)
def test_prunes_with_free_batch_and_sequence(name: str, exporter: Exporter, tmp_path: Path) -> None:
    """Verified, and it still takes any length."""
    path, pruned = tmp_path / "model.onnx", tmp_path / "pruned.onnx"
    _export_text(name, path, exporter, ("batch", "sequence"))
    result = spa_graph.prune(path, flops=0.5, output=pruned)
    assert result.report["ratio"]["flops"] <= 0.5
    session = open_session(pruned)
    for shape in ((1, 5), (3, 40)):
        [output] = run(session, {"tokens": np.ones(shape, np.int64)})
        assert output.shape[0] == shape[0]
        assert np.isfinite(output).all()


def _export_text(name: str, path: Path, exporter: Exporter, axes: tuple[str, ...]) -> None:
    import torch

    module, inputs, names = OF_ANY_LENGTH[name]()
    options: dict[str, object] = {"input_names": list(names), "output_names": ["output"]}
    if exporter == "dynamo" and axes:
        sizes = {axis: torch.export.Dim(name) for axis, name in enumerate(axes)}
        options["dynamic_shapes"] = (sizes,)
    elif axes:
        options["dynamic_axes"] = {name: dict(enumerate(axes)) for name in (*names, "output")}
    if exporter == "dynamo":
        options |= {"external_data": False, "verbose": False}
    with torch.no_grad():
        torch.onnx.export(
            module, inputs, str(path), opset_version=18, dynamo=exporter == "dynamo", **options
        )
