"""A folder of images as calibration data, and the small language that says how to prepare them.

    resize=256,crop=224,scale=1/255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,color=bgr

Steps are done in this order, whatever their order in the text: colour, resize (one number is the
shorter side, `48x320` is height and width), crop from the middle, times scale, minus mean, divided
by std. `imagenet` stands for what most ImageNet classifiers were trained with.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spa_graph.errors import OptionError
from spa_graph.runtime.calibration.batches import Indices
from spa_graph.runtime.calibration.wanted import Array, Wanted, check_shape, convert
from spa_graph.runtime.inputs import Feeds

SUFFIXES = frozenset(".jpg .jpeg .png .bmp .webp .gif .tif .tiff .ppm .pgm .pbm".split())
Size = int | tuple[int, int]
Color = Literal["rgb", "bgr", "gray"]
Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """How an image becomes an input.

    resize: the shorter side, or (height, width); None: the input's size, unless there is a crop.
    crop: this much of the middle, a square or (height, width).
    scale: what pixels of 0..255 are multiplied by; None: 1/255 for real inputs, 1 for integers.
    mean: is subtracted then, one number or one per channel, in the order of `color`.
    std: divides then.
    color: None: RGB for three channels, gray for one.
    layout: None: seen from the input's shape.
    """

    resize: Size | None = None
    crop: Size | None = None
    scale: float | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    color: Color | None = None
    layout: Layout | None = None

    @staticmethod
    def parse(text: str) -> Preprocess:
        """Read the text form.

        >>> Preprocess.parse("resize=48x320,scale=1/255,mean=0.5,std=0.5,color=bgr").resize
        (48, 320)

        Raises:
            OptionError: a step is unknown or its value can't be read.
        """
        result = Preprocess()
        for number, step in enumerate(text.replace(" ", "").split(",")):
            if number == 0 and step in PRESETS:
                result = PRESETS[step]
                continue
            name, _, value = step.partition("=")
            if name not in _STEPS or not value:
                raise OptionError(
                    f"--preprocess {text}: `{step}` is no step; there are "
                    + ", ".join(f"{step}=" for step in _STEPS)
                    + f" and, in front, {', '.join(PRESETS)}"
                )
            try:
                result = replace(result, **{name: _STEPS[name](value)})
            except (ValueError, ZeroDivisionError) as error:
                raise OptionError(
                    f"--preprocess {text}: can't read `{value}` for {name}; {_EXAMPLES[name]}"
                ) from error
        return result


def _size(text: str) -> Size:
    sides = [int(side) for side in text.split("x")]
    if len(sides) > 2 or min(sides) < 1:
        raise ValueError(text)
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _number(text: str) -> float:
    return float(Fraction(text)) if "/" in text else float(text)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_number(part) for part in text.split(":"))


def _divisors(text: str) -> tuple[float, ...]:
    numbers = _numbers(text)
    if 0 in numbers:
        raise ValueError(text)
    return numbers


def _one_of(*names: str) -> Any:
    def choose(text: str) -> str:
        if text not in names:
            raise ValueError(text)
        return text

    return choose


_STEPS: Mapping[str, Any] = {
    "resize": _size,
    "crop": _size,
    "scale": _number,
    "mean": _numbers,
    "std": _divisors,
    "color": _one_of("rgb", "bgr", "gray"),
    "layout": _one_of("nchw", "nhwc"),
}
_EXAMPLES = {
    "resize": "say 256 or 48x320",
    "crop": "say 224 or 48x320",
    "scale": "say 1/255",
    "mean": "say 0.5 or 0.485:0.456:0.406",
    "std": "say 0.5 or 0.229:0.224:0.225",
    "color": "say rgb, bgr or gray",
    "layout": "say nchw or nhwc",
}
PRESETS = {
    "imagenet": Preprocess(
        resize=256,
        crop=224,
        scale=1 / 255,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
}


@dataclass(frozen=True, slots=True)
class ImageShape:
    """Where an input keeps an image's channels and sides; free sides are those of the graph."""

    channels: int
    height: int
    width: int
    layout: Layout


def image_shape(want: Wanted, layout: Layout | None = None) -> ImageShape | None:
    """How an input takes images, or None if it takes none: rank 4 with 1, 3 or 4 channels."""
    if len(want.nominal) != 4:
        return None
    _, first, height, last = want.nominal
    if layout != "nhwc" and (first in (1, 3, 4) or layout == "nchw"):
        return ImageShape(first, height, last, "nchw")
    if layout == "nhwc" or last in (1, 3, 4):
        return ImageShape(last, first, height, "nhwc")
    return None


class Images:
    """Reads images by their number: decoded when they are asked for."""

    def __init__(self, paths: list[Path], want: Wanted, steps: Preprocess) -> None:
        self._paths, self._want, self._steps = paths, want, steps
        self._image = _pillow()
        shape = image_shape(want, steps.layout)
        if shape is None:
            raise OptionError(
                f"input `{want.name}` takes no images, it is {want}; give arrays instead"
            )
        self._shape = shape
        for name in ("mean", "std"):
            count = len(getattr(steps, name))
            if count not in (1, shape.channels):
                raise OptionError(
                    f"--preprocess {name}= gives {count} numbers, but input `{want.name}` has "
                    f"{shape.channels} channels"
                )

    @property
    def default(self) -> str:
        """What is done if nothing is asked for."""
        scale = " and divided by 255" if self._want.floating else ""
        return f"resized to {self._shape.height}x{self._shape.width}{scale}"

    def read(self, indices: Indices) -> Feeds:
        """Feeds for one run."""
        images = np.stack([self._read(self._paths[index]) for index in indices.tolist()])
        if self._shape.layout == "nchw":
            images = images.transpose(0, 3, 1, 2)
        return {self._want.name: convert(self._want, images, "images")}

    def _read(self, path: Path) -> Array:
        """`(height, width, channels)`, ready but for its layout and type."""
        steps, shape = self._steps, self._shape
        try:
            with self._image.open(path) as file:
                image = self._prepared(file)
        except OSError as error:
            raise OptionError(f"cannot read the image {path}: {error}") from error
        pixels = np.asarray(image, np.float32).reshape(image.height, image.width, -1)
        if steps.color == "bgr":
            pixels = pixels[:, :, ::-1]
        default = 1 / 255 if self._want.floating else 1.0
        pixels = pixels * np.float32(steps.scale if steps.scale is not None else default)
        mean, std = (np.array(each, np.float32) for each in (steps.mean, steps.std))
        pixels = (pixels - mean) / std
        height, width, channels = pixels.shape
        nhwc = shape.layout == "nhwc"
        got = (1, height, width, channels) if nhwc else (1, channels, height, width)
        check_shape(self._want, got, f"{path.name} after --preprocess")
        return pixels

    def _prepared(self, image: Any) -> Any:
        """In the right colours, resized and cropped."""
        steps, shape = self._steps, self._shape
        from_camera = importlib.import_module("PIL.ImageOps").exif_transpose(image)
        color = steps.color or ("gray" if shape.channels == 1 else "rgb")
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[3 if color == "bgr" else shape.channels]
        image = from_camera.convert("L" if color == "gray" else mode)
        if color == "gray" and shape.channels == 3:
            image = image.convert("RGB")
        resize = steps.resize
        if resize is None and steps.crop is None:
            resize = (shape.height, shape.width)
        if isinstance(resize, int):
            ratio = resize / min(image.size)
            resize = (round(image.height * ratio), round(image.width * ratio))
        if resize is not None:
            height, width = resize
            image = image.resize((width, height), self._image.Resampling.BILINEAR)
        return _cropped(image, steps.crop)


def _cropped(image: Any, crop: Size | None) -> Any:
    if crop is None:
        return image
    height, width = (crop, crop) if isinstance(crop, int) else crop
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ModuleNotFoundError as error:
        raise OptionError(
            "reading images needs Pillow; run: pip install 'spa-prune[images]'"
        ) from error


def check(folder: Path) -> None:
    """Whether there are images in a folder, and what reads them.

    Raises:
        OptionError: there are none, or Pillow isn't installed.
    """
    find(folder, 1, 0)
    _pillow()


def find(folder: Path, samples: int, seed: int) -> list[Path]:
    """Images in a folder and below, a random choice if there are more than asked for.

    Raises:
        OptionError: there are none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise OptionError(f"no images in {folder}; it takes {' '.join(sorted(SUFFIXES))}")
    order = np.random.default_rng(seed).permutation(len(paths))[:samples]
    return [paths[index] for index in sorted(order.tolist())]
