"""Every network of ``torchvision.models.list_models()``, at the smallest input that it accepts.

Classifiers and video networks are taken as they are. Wrappers give the others tensors to return:
the main output of a segmentation network, the last flow of RAFT, the detections of all images.
The quantised networks are built in floating point, which is what one would prune.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from spa_graph.models_zoo.architectures import SETTLE_BATCH, Built, Exporter, import_torchvision
from spa_graph.models_zoo.catalogue import Entry

SIZE = 64  # pixels, where nothing else is said
# By longest prefix: networks that don't work at 64 pixels, or are different there.
SIZES = {
    "alexnet": 224,  # these two pool to a fixed size
    "vgg": 224,
    "inception_v3": 96,
    "quantized_inception_v3": 96,
    "maxvit": 224,  # windows of 7 x 7 at four scales
    "vit_h_14": 56,
    "raft": 128,
    "s3d": 224,
    "mvit": 224,  # tables of positions, also for 16 frames
    "fasterrcnn": 128,
    "maskrcnn": 128,
    "keypointrcnn": 128,
    "retinanet": 128,
    "fcos": 128,
    "ssd300": 300,
    "ssdlite320": 320,
}
FRAMES = {"s3d": 16, "mvit": 16, "swin3d": 8}  # of a video; others take 4
BASE = 25.6e6  # parameters of a ResNet-50: the unit of `Entry.weight`
FLOWS = 4  # refinements by RAFT; 12 by default

STAGES = {"rpn_pre_nms_top_n_test": 100, "rpn_post_nms_top_n_test": 50}
FEW = {"box_detections_per_img": 20}
CANDIDATES = {"topk_candidates": 50, "detections_per_img": 20}


def rows() -> Iterable[Entry]:
    """Return a row for every name."""
    models = import_torchvision().models
    return [_row(models, name) for name in models.list_models()]


def _row(models: Any, name: str) -> Entry:
    kind = models.get_model_builder(name).__module__.split(".")[2:]
    parameters = _parameters(models, name)
    size = SIZES.get(_prefix(name, SIZES), SIZE)
    weight = max(0.3, parameters / BASE)
    if kind[0] == "detection":
        return Entry(
            "torchvision",
            name,
            lambda: _detector(name, size),
            dynamic_batch=False,
            data_dependent=True,
            weight=weight + 2,
            note="whole detector with NMS; few proposals",
        )
    if kind[0] == "optical_flow":
        note = f"{FLOWS} refinements"
        return Entry("torchvision", name, lambda: _flow(name, size), weight=weight + 4, note=note)
    if kind[0] == "video":
        weight = 4 * weight + 1 if size > SIZE else 2 * weight
        first: tuple[Exporter, ...] = ("torchscript", "dynamo")
        note = ""
        if name.startswith("mvit"):
            first, note = first[::-1], "TorchScript writes a Loop over a list, which stays frozen"
        return Entry(
            "torchvision",
            name,
            lambda: _video(name, size),
            exporters=first,
            weight=weight,
            note=note,
        )
    if kind[0] == "segmentation":
        return Entry("torchvision", name, lambda: _segmentation(name, size), weight=weight)
    note = "in floating point" if kind[0] == "quantization" else ""
    return Entry("torchvision", name, lambda: _classifier(name, size), weight=weight, note=note)


def _prefix(name: str, table: dict[str, int]) -> str:
    return max((key for key in table if name.startswith(key)), key=len, default="")


def _parameters(models: Any, name: str) -> float:
    """What the published weights say; nothing is downloaded."""
    return max((w.meta["num_params"] for w in models.get_model_weights(name)), default=BASE)


def _images(size: int) -> Any:
    import torch

    return torch.randn(SETTLE_BATCH, 3, size, size)


def _classifier(name: str, size: int) -> Built:
    models = import_torchvision().models
    options: dict[str, Any] = {}
    if name.startswith("vit"):
        options = {"image_size": size}
    elif "googlenet" in name or "inception" in name:
        options = {"init_weights": False, "aux_logits": False}
    if name.startswith("quantized"):
        options |= {"quantize": False}
    return models.get_model(name, weights=None, **options), (_images(size),), ("input",)


def _segmentation(name: str, size: int) -> Built:
    return _part(
        _no_weights(name), lambda network, images: network(images)["out"], (_images(size),)
    )


def _detector(name: str, size: int) -> Built:
    options: dict[str, Any] = {}
    if "rcnn" in name:
        options = {**STAGES, **FEW, "min_size": size, "max_size": size}
    elif name.startswith(("retinanet", "fcos")):
        options = {**CANDIDATES, "min_size": size, "max_size": size}
    else:
        options = dict(CANDIDATES)
    return _part(_no_weights(name, **options), _detections, (_images(size)[:2],))


def _detections(network: Any, images: Any) -> Any:
    """Each kind of result of all images, in a row."""
    import torch

    found = network(list(images))
    return tuple(torch.cat([result[key] for result in found]) for key in found[0])


def _video(name: str, size: int) -> Built:
    import torch

    frames = FRAMES.get(_prefix(name, FRAMES), 4)
    module = import_torchvision().models.get_model(name, weights=None)
    return module, (torch.randn(2, 3, frames, size, size),), ("input",)


def _flow(name: str, size: int) -> Built:
    import torch

    pair = torch.randn(2, 2, 3, size, size).clamp(-1, 1)
    return _part(
        import_torchvision().models.get_model(name, weights=None),
        lambda network, first, second: network(first, second, num_flow_updates=FLOWS)[-1],
        (pair[0], pair[1]),
        ("first", "second"),
    )


def _no_weights(name: str, **options: Any) -> Any:
    models = import_torchvision().models
    return models.get_model(name, weights=None, weights_backbone=None, **options)


def _part(
    network: Any,
    forward: Callable[..., Any],
    inputs: tuple[Any, ...],
    names: tuple[str, ...] = ("input",),
) -> Built:
    """A module that computes `forward(network, *inputs)`."""
    from torch import nn

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *given: Any) -> Any:
            return forward(self.network, *given)

    return Part(), inputs, names
