"""How made-up images and sounds look to a network, and the looks that networks are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from spa_graph.runtime.calibration import noise
from spa_graph.runtime.calibration.images import PRESETS


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What the network sees is `offset + gain * u`.

    offset, gain: one number, or one per channel; u is an image in [0, 1] or a sound of deviation 1.
    mix: how often each kind of image is drawn.
    """

    name: str
    offset: tuple[float, ...] = (0.0,)
    gain: tuple[float, ...] = (1.0,)
    mix: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(noise.IMAGES, 1.0))


_MEAN, _DEVIATION = 0.48, 0.25
"""Of the images that `noise` makes, all pixels alike."""
STANDARDISED = Look("standardised", (-_MEAN / _DEVIATION,), (1 / _DEVIATION,))
PLAIN = Look("as it is")
BYTES = Look("0..255", (0.0,), (255.0,))


def image_looks(channels: int) -> Iterator[Look]:
    """What images are usually made of before a network sees them."""
    yield STANDARDISED
    yield Look("[-1, 1]", (-1.0,), (2.0,))
    yield Look("[0, 1]")
    yield Look("[-0.5, 0.5]", (-0.5,), (1.0,))
    yield BYTES
    yield Look("-128..127", (-128.0,), (255.0,))
    if channels == 3:
        mean, std = (np.array(getattr(PRESETS["imagenet"], name)) for name in ("mean", "std"))
        yield Look("ImageNet-normalised", tuple(-mean / std), tuple(1 / std))


def sound_looks() -> Iterator[Look]:
    """Sounds from quiet ones of full scale 1 to 16-bit integers, by their deviation."""
    for gain in (1.0, 0.03, 0.1, 0.3, 3.0, 1000.0, 10000.0):
        yield Look(f"deviation {gain:g}", (0.0,), (gain,))


def mixes(look: Look) -> Iterator[Look]:
    """The same look, and ones with one kind of image prevailing; the others keep it diverse."""
    yield look
    for kind in noise.IMAGES:
        mix = {**dict.fromkeys(noise.IMAGES, 1.0), kind: 5.0}
        yield replace(look, name=f"{look.name}, mostly {kind}", mix=mix)


def scales(look: Look) -> Iterator[Look]:
    """The same look, brighter and darker, of more and less contrast."""
    middle = [o + _MEAN * g for o, g in zip(look.offset, look.gain, strict=True)]
    for contrast in (0.7, 1.0, 1.4):
        for shift in (-0.5, 0.0, 0.5):
            gain = tuple(contrast * g for g in look.gain)
            offset = tuple(
                m + shift * _DEVIATION * old - _MEAN * new
                for m, old, new in zip(middle, look.gain, gain, strict=True)
            )
            yield replace(look, offset=offset, gain=gain)
