"""Builders of known torch architectures, and their export to ONNX.

Nothing is downloaded: weights are random under a fixed seed, made numerically sane by
`settle` so that an untrained network's output is finite and says something. What is left
as its authors initialise it (LayerNorm ones, zero biases) is left on purpose: exporters merge
such equal tensors into one shared initializer, and the analysis must cope with that.

Only building needs torch and torchvision; importing this module does not.

    python -m spa_graph.models_zoo.architectures FOLDER [NAME...]
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

Exporter = Literal["dynamo", "torchscript"]
Size = int | Literal["small"] | None
Built = tuple["nn.Module", tuple["torch.Tensor", ...], tuple[str, ...]]

BOTH: tuple[Exporter, ...] = ("dynamo", "torchscript")
# What works for all networks. TorchScript stops at 20. Asked for less than 18, dynamo mostly writes
# 18, and for `yolo` a file that ONNX Runtime refuses: see tests/architectures/test_forms.py.
OPSETS: dict[Exporter, tuple[int, ...]] = {
    "dynamo": (18, 21, 23),
    "torchscript": (13, 14, 17, 18, 20),
}
BATCH = 2
AXES = ("batch", "sequence")  # names of the inputs' leading axes, where they are free
SETTLE_BATCH = 8  # images that BatchNorm statistics are taken from
OPSET = 18
SEED = 0
LARGEST_FILE = 1_900_000_000  # bytes; protobuf ends at 2 GiB


@dataclass(frozen=True)
class Architecture:
    """A network that can be built and exported.

    `size` is a small input resolution (or sequence length) that the architecture still
    accepts, which keeps verification fast; `true_size` is the one it was designed for.
    """

    name: str
    builder: Callable[[int], Built]
    size: int
    true_size: int
    exporters: tuple[Exporter, ...] = BOTH
    first_opset: int = 13
    dynamic_batch: bool = True
    note: str = ""

    def build(self, size: Size = "small") -> Built:
        """Return (module in eval mode, example inputs, input names); `size=None`: true size."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            module, inputs, names = self.builder(self.resolve(size))
            settle(module.eval(), inputs)
        return module, tuple(x[:BATCH] for x in inputs), names

    def opsets(self, exporter: Exporter) -> tuple[int, ...]:
        """Return the opsets that were found to work; none if the exporter doesn't."""
        if exporter not in self.exporters:
            return ()
        return tuple(opset for opset in OPSETS[exporter] if opset >= self.first_opset)

    def resolve(self, size: Size) -> int:
        """Return the input resolution or sequence length that `size` stands for."""
        if size == "small":
            return self.size
        return self.true_size if size is None else size


def export(
    name: str,
    folder: str | os.PathLike[str],
    exporter: Exporter = "dynamo",
    opset: int = OPSET,
    dynamic_batch: bool | None = None,
    size: Size = "small",
    fuse: bool = True,
) -> Path:
    """Export an architecture to one ONNX file in `folder`; a file already there is kept.

    `dynamic_batch=None` takes what the architecture can do; `size=None` its true resolution;
    `fuse=False` keeps BatchNormalization, which exporters fold into convolutions.
    Each combination of options has its own file name.

    Raises ValueError where the exporter or opset doesn't work for this network.
    """
    architecture = ARCHITECTURES[name]
    if opset not in architecture.opsets(exporter):
        works = {e: architecture.opsets(e) for e in architecture.exporters}
        raise ValueError(f"{name}: no opset {opset} with {exporter}; these work: {works}")
    dynamic = architecture.dynamic_batch if dynamic_batch is None else dynamic_batch
    pixels = architecture.resolve(size)
    tags = [name, exporter]
    tags += [f"opset{opset}"] if opset != OPSET else []
    tags += ["static"] if dynamic != architecture.dynamic_batch else []
    tags += [f"size{pixels}"] if pixels != architecture.size else []
    tags += [] if fuse else ["unfused"]
    path = Path(folder) / (".".join(tags) + ".onnx")
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own and a rename: a second process never sees half a file.
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        write(architecture.build(size), partial, exporter, opset, dynamic, fuse)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write(
    built: Built, path: Path, exporter: Exporter, opset: int, dynamic: int, fuse: bool
) -> None:
    """Run one torch exporter, quietly; `dynamic` of the inputs' leading axes (AXES) are free."""
    import torch

    module, inputs, names = built
    with torch.no_grad():
        result = module(*inputs)
    count = 1 if isinstance(result, torch.Tensor) else len(result)
    outputs = ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
    options: dict[str, Any] = {"input_names": list(names), "output_names": outputs}
    free = AXES[:dynamic]
    if exporter == "torchscript":
        options |= {"dynamo": False}
        if dynamic:
            options |= {"dynamic_axes": {name: dict(enumerate(free)) for name in names}}
            options["dynamic_axes"] |= {name: {0: AXES[0]} for name in outputs}
        if not fuse:
            options |= {"training": torch.onnx.TrainingMode.PRESERVE}
    else:
        # One file, unless protobuf can't hold it.
        stored = sum(tensor.nbytes for tensor in module.state_dict().values())
        options |= {"dynamo": True, "optimize": fuse, "verbose": False}
        options |= {"external_data": stored > LARGEST_FILE}
        if dynamic:
            sizes = {axis: torch.export.Dim(name) for axis, name in enumerate(free)}
            options |= {"dynamic_shapes": (sizes,) * len(inputs)}
    from spa_graph.frontends.torch.attention import plain_attention

    with warnings.catch_warnings(), torch.no_grad(), plain_attention():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, str(path), opset_version=opset, **options)


def settle(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Make random weights behave like trained ones, as far as magnitudes go.

    Some initial weights would hide a wrong rewrite behind a tiny or constant output: ViT's zero
    head, ConvNeXt's layer scales of 1e-6, depthwise kernels far below BatchNorm's epsilon. They
    are drawn anew. BatchNorm gets affine parameters that vary and the statistics of what really
    arrives: without these, activations grow with depth.
    """
    import torch
    from torch import nn

    norms = []
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear | nn.modules.conv._ConvNd):
                nn.init.kaiming_normal_(part.weight)
            elif isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(std=0.2)
                part.momentum = 1.0
                norms.append(part.train())
        for name, parameter in module.named_parameters():
            if "layer_scale" in name:
                parameter.uniform_(0.1, 0.5)
        if norms:
            module(*inputs)
    for norm in norms:
        mean, variance = norm.eval().running_mean, norm.running_var
        assert mean is not None and variance is not None
        # Channels that hardly vary, or vary little beside their mean, would amplify rounding.
        floor = torch.maximum(0.5 * mean.square(), 0.1 * variance.mean())
        variance.copy_(torch.maximum(variance, floor))


def image(size: int) -> tuple[tuple[torch.Tensor, ...], tuple[str, ...]]:
    """Return random images and their input name."""
    import torch

    return (torch.randn(SETTLE_BATCH, 3, size, size),), ("input",)


def tokens(length: int) -> tuple[tuple[torch.Tensor, ...], tuple[str, ...]]:
    """Return random token ids and their input name."""
    import torch

    from spa_graph.models_zoo.torch_networks import WORDS

    return (torch.randint(0, WORDS, (SETTLE_BATCH, length)),), ("tokens",)


def _nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression; return the kept indices, best first."""
    import torch
    from torchvision.ops import box_iou

    order, kept = scores.argsort(descending=True), []
    while len(order):
        kept.append(order[0])
        overlap = box_iou(boxes[order[:1]], boxes[order[1:]])[0]
        order = order[1:][overlap <= threshold]
    return torch.stack(kept) if kept else order


def _has_operators() -> bool:
    """Stand in for torchvision's own check (TorchScript compiles it: a lambda can't be)."""
    return True


def _align(*arguments: Any) -> Any:
    """Torchvision's own roi_align in Python; it would be compiled on first use."""
    module = importlib.import_module("torchvision.ops.roi_align")
    return module._roi_align.__wrapped__(*arguments)


STAND_INS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align": "(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor",
}


@functools.cache
def import_torchvision() -> Any:
    """Import torchvision, also where its compiled library doesn't load (a mismatched build).

    It declares meta kernels for two operators on import, which fails where nobody has defined
    them. Exporting a detector only traces NMS, so that a slow one in Python is enough.
    """
    import torch

    try:
        import torchvision
    except RuntimeError:
        for name, schema in STAND_INS.items():
            torch.library.define(f"torchvision::{name}", schema)
        torch.library.impl("torchvision::nms", "cpu", _nms)
        torch.library.impl("torchvision::roi_align", "CompositeImplicitAutograd", _align)
        import torchvision

        torchvision.extension._has_ops = _has_operators
        importlib.import_module("torchvision.ops.roi_align")._has_ops = _has_operators  # type: ignore[attr-defined]
    return torchvision


def _classifier(
    name: str, size: int = 64, true_size: int = 224, first_opset: int = 13, **options: Any
) -> Architecture:
    """Return a torchvision classifier."""

    def build(size: int) -> Built:
        fixed = {"image_size": size} if name.startswith("vit") else {}
        models = import_torchvision().models
        return models.get_model(name, weights=None, **options, **fixed), *image(size)

    return Architecture(name, build, size, true_size, first_opset=first_opset)


def _part(
    model: str, forward: Callable[[Any, torch.Tensor], Any], **options: Any
) -> Callable[[int], Built]:
    """Return a builder of a torchvision network that computes `forward(network, images)`."""

    def build(size: int) -> Built:
        from torch import nn

        models = import_torchvision().models
        no_weights = {"weights": None, "weights_backbone": None}

        class Part(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = models.get_model(model, **no_weights, **options)

            def forward(self, images: torch.Tensor) -> Any:
                return forward(self.network, images)

        return Part(), *image(size)

    return build


def _segment(network: Any, images: torch.Tensor) -> Any:
    """Return the main output of a segmentation network."""
    return network(images)["out"]


def _raw_heads(network: Any, images: torch.Tensor) -> Any:
    """Return what a one-stage detector's heads say, before anchors and NMS."""
    return tuple(network.head(list(network.backbone(images).values())).values())


def _detect(network: Any, images: torch.Tensor) -> Any:
    """Return boxes, scores and labels, those of all images in a row."""
    import torch

    found = network(list(images))
    return tuple(torch.cat([f[key] for f in found]) for key in ("boxes", "scores", "labels"))


def _own(name: str, size: int, true_size: int, text: bool = False) -> Architecture:
    """Return a network of `torch_networks`."""

    def build(size: int) -> Built:
        from spa_graph.models_zoo.torch_networks import NETWORKS

        return NETWORKS[name](size), *(tokens(size) if text else image(size))

    return Architecture(name, build, size, true_size)


_ALL = (
    _classifier("resnet18"),
    _classifier("resnet50"),
    _classifier("resnext50_32x4d"),
    _classifier("regnet_y_400mf"),
    _classifier("densenet121"),
    _classifier("densenet201"),
    _classifier("mobilenet_v2"),
    _classifier("mobilenet_v3_large"),
    _classifier("efficientnet_b0"),
    _classifier("mnasnet1_0"),
    _classifier("shufflenet_v2_x1_0"),
    _classifier("squeezenet1_1"),
    _classifier("googlenet", init_weights=False, aux_logits=False),
    _classifier("inception_v3", 96, 299, init_weights=False, aux_logits=False),
    # VGG pools to 7 x 7: at other sizes that is no plain pooling in ONNX.
    _classifier("vgg16_bn", 224),
    _classifier("vgg19_bn", 224),
    _classifier("convnext_tiny"),
    _classifier("vit_b_16", first_opset=14),
    _classifier("swin_t"),
    Architecture(
        "lraspp_mobilenet_v3_large", _part("lraspp_mobilenet_v3_large", _segment), 64, 520
    ),
    Architecture("deeplabv3_resnet50", _part("deeplabv3_resnet50", _segment), 64, 520),
    Architecture(
        "ssdlite320_mobilenet_v3_large_heads",
        _part("ssdlite320_mobilenet_v3_large", _raw_heads),
        160,
        320,
        note="raw box and class heads, before anchors and NMS",
    ),
    Architecture(
        "retinanet_resnet50_fpn_heads",
        _part("retinanet_resnet50_fpn", _raw_heads),
        128,
        800,
        note="raw heads: the same weights applied to five pyramid levels",
    ),
    Architecture(
        "ssdlite320_mobilenet_v3_large",
        _part("ssdlite320_mobilenet_v3_large", _detect, num_classes=21, topk_candidates=30),
        320,
        320,
        exporters=("torchscript",),
        dynamic_batch=False,
        note="whole detector with NMS: 21 classes, output sizes depend on data",
    ),
    _own("lstm", 16, 64, text=True),
    _own("gru", 16, 64, text=True),
    _own("gpt", 16, 256, text=True),
    _own("unet", 32, 256),
    _own("unet_groupnorm", 32, 256),
    _own("yolo", 64, 640),
    _own("autoencoder", 32, 32),
)
ARCHITECTURES: dict[str, Architecture] = {a.name: a for a in _ALL}


def main() -> None:
    """Export the named architectures (all by default) with every exporter that works."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ARCHITECTURES))
    arguments = parser.parse_args()
    for name in arguments.names or ARCHITECTURES:
        for exporter in ARCHITECTURES[name].exporters:
            start = time.perf_counter()
            path = export(name, arguments.folder, exporter)
            seconds, mebibytes = time.perf_counter() - start, path.stat().st_size / 2**20
            print(f"{name:35} {exporter:12} {mebibytes:8.1f} MiB {seconds:6.1f} s", flush=True)


if __name__ == "__main__":
    main()
