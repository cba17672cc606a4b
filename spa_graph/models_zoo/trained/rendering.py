"""Rendered text shared by the text networks: fonts, words, and the damage of a camera.

Words are drawn in Debian's DejaVu fonts (package ``fonts-dejavu``, a free licence).  The first
half of the word list is for evaluation, the second for calibration, so the two never share a word.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from spa_graph.models_zoo.trained.base import Array, MissingRequirementError

FONT_FOLDER = Path("/usr/share/fonts/truetype/dejavu")

_WORDS = """
able acid actor address afternoon airport almost amount animal answer apple archive argument arrow
artist autumn average balance bank basket battery beautiful bedroom believe bicycle black bottle
boundary branch bread bridge bright brother brown budget building business butter button camera
candle captain carbon careful castle cellar century chair change chapter charge cheese chicken
choice circle citizen clean climate clock cloud coast coffee colour column common company computer
concert copper corner cotton country course cousin cream crystal culture current curtain customer
damage dance danger daughter december decision degree delivery desert detail dialogue difference
dinner direction distance doctor dollar double dragon drawing dream driver during early earth
eastern echo economy education effort eight electric element elephant empty energy engine english
enough entrance equal evening event exactly example exercise expert explain express factory fair
family famous farmer feather february festival field figure final finger fire fish flight floor
flower follow foreign forest fortune forward fountain freedom friday friend frozen fruit future
gallery garden gather general gentle giant glass golden government grammar grape gravity green
ground group growth guitar half hammer handle happy harbour harvest health heart heavy height
helmet history holiday honest honey horizon horse hospital hotel hour hundred hungry ice image
""".split()

_OTHER_WORDS = """
imagine impact inch industry insect island jacket january jewel journey judge juice july jungle
justice keyboard kind king kitchen knee knife ladder lake language laptop large laugh leader
leather lemon length lesson letter level library light limit lion liquid listen little local
london machine magazine magnet manager marble market master meadow measure medicine member memory
message metal method middle minute mirror modern moment monday money month moon morning mother
mountain music mystery narrow nation nature needle network never night noble north notebook
november number object ocean october office olive only opinion orange orchestra order ordinary
oxygen package page paint palace paper parent park partner passage pattern peace pencil people
pepper perfect period phone photo picture pillow pilot planet plastic player pleasure pocket poem
police popular potato powder practice present price print prison problem product project promise
public pupil purple quality quarter question quick quiet rabbit radio railway rain reason recipe
record region remember report rescue result return rhythm rice river rocket roof royal rubber
sailor salt sample saturday school science season second secret sentence september service shadow
shelter shirt shoulder signal silver simple sister sleep small smooth soldier south spring square
""".split()

EVALUATION_WORDS = tuple(word for word in _WORDS if 4 <= len(word) <= 12)
CALIBRATION_WORDS = tuple(word for word in _OTHER_WORDS if 4 <= len(word) <= 12)


@cache
def fonts() -> tuple[Path, ...]:
    """Return the DejaVu fonts of the machine, in a fixed order.

    Raises:
        MissingRequirementError: The fonts are not installed.
    """
    found = tuple(
        sorted(FONT_FOLDER.glob("DejaVuSans*.ttf")) + sorted(FONT_FOLDER.glob("DejaVuSerif*.ttf"))
    )
    if not found:
        raise MissingRequirementError(
            f"no DejaVu fonts in {FONT_FOLDER}; run: apt-get install fonts-dejavu"
        )
    return found


def random_font(rng: np.random.Generator, size: int) -> ImageFont.FreeTypeFont:
    """Return a random DejaVu font of `size` pixels."""
    available = fonts()
    return _font(available[int(rng.integers(len(available)))], size)


@cache
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


def random_colour(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    """Return an RGB colour with every component in ``[low, high]``."""
    red, green, blue = (int(value) for value in rng.integers(low, high + 1, size=3))
    return red, green, blue


def damage(image: Image.Image, rng: np.random.Generator, blur: float, noise: float) -> Image.Image:
    """Blur with a radius up to `blur` pixels, then add noise of a deviation up to `noise` (of 255).

    Both amounts are drawn uniformly from zero to their maximum.
    """
    blurred = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, blur)))
    pixels = np.asarray(blurred, np.float32)
    noisy = pixels + rng.normal(0, rng.uniform(0, noise), pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def render_word(word: str, rng: np.random.Generator) -> Image.Image:
    """Draw a dark word on a light ground: random font, rotation of 2 degrees, blur and noise."""
    font = random_font(rng, 36)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(word))
    margin = 8
    size = (right - left + 2 * margin, bottom - top + 2 * margin)
    ground = random_colour(rng, 190, 255)
    image = Image.new("RGB", size, ground)
    ink = random_colour(rng, 0, 90)
    ImageDraw.Draw(image).text((margin - left, margin - top), word, font=font, fill=ink)
    angle = float(rng.uniform(-2, 2))
    rotated = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=ground)
    return damage(rotated, rng, blur=2.0, noise=32.0)


def text_line(image: Image.Image, width: int) -> Array:
    """Turn a line of text into the input of the PP-OCR networks.

    Scales to 48 rows, keeps the aspect up to `width` and fills the right with zeros.

    Returns:
        ``(3, 48, width)`` float32 in [-1, 1], BGR.
    """
    height = 48
    scaled = min(width, round(image.width * height / image.height))
    pixels = np.asarray(image.resize((scaled, height), Image.Resampling.BILINEAR), np.float32)
    line = np.zeros((3, height, width), np.float32)
    line[:, :, :scaled] = (pixels[:, :, ::-1].transpose(2, 0, 1) / 255 - 0.5) / 0.5
    return line


def collapse_repeats(labels: Array, blank: int) -> list[int]:
    """Decode one best CTC path: merge equal neighbours, then drop the blank."""
    kept = [
        int(now) for before, now in zip([blank, *labels[:-1]], labels, strict=True) if now != before
    ]
    return [label for label in kept if label != blank]
