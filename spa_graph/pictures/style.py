"""How all pictures look, and how they become files or parts of a page.

Figures are narrow, with a row per group or operator, so that a phone shows them at full size. Text
stays text in SVG. Colours are of the palette of Okabe and Ito (2008, "Color Universal Design"),
which people with colour-blindness tell apart; where colour tells something, the marker or the
place tells it too.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from spa_graph.errors import OptionError

P = ParamSpec("P")
T = TypeVar("T")

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#999999"
SERIES = (BLUE, ORANGE, GREEN, "#cc79a7", "#56b4e9", "#e69f00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SUFFIXES = (".svg", ".png", ".pdf")
WIDTH = 3.8
ROW = 0.19
"""Inches."""
LONGEST_NAME = 24
_STYLE: Any = {  # matplotlib types its keys, where it is new enough
    "svg.fonttype": "none",
    "svg.hashsalt": "spa-prune",  # the same picture is the same file
    "font.family": "sans-serif",
    "font.size": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


def check_pictures(path: Path | None = None) -> None:
    """Whether a picture can be drawn, and written to `path`.

    Raises:
        OptionError: a package is missing, or the file's ending is none of a picture.
    """
    if path is not None and path.suffix.lower() not in SUFFIXES:
        raise OptionError(f"{path}: a picture's name ends in {', '.join(SUFFIXES)}")
    if not drawable():
        raise OptionError("pictures need matplotlib: pip install 'spa-prune[report]'")


def drawable() -> bool:
    """Whether the library for pictures is there."""
    return find_spec("matplotlib") is not None


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """What a function draws looks like the rest."""

    @wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> T:
        from matplotlib import rc_context

        with rc_context(_STYLE):
            return draw(*args, **kwargs)

    return inner


def figure(rows: int, *, title: str = "", minimum: float = 1.6) -> tuple[Any, Any]:
    """A figure with one axes, high enough for so many rows; to be called where it is `styled`."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(WIDTH, max(minimum, 0.9 + ROW * rows)), layout="constrained")
    axes = drawn.add_subplot()
    axes.set_title(title)
    return drawn, axes


def name_rows(axes: Any, names: Sequence[str]) -> None:
    """Rows from the top down, each with its name."""
    start = _shared_start(names)
    axes.set_yticks(range(len(names)), [shortened(name[start:]) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def _shared_start(names: Sequence[str]) -> int:
    """How many characters all names begin with alike, up to a dot or slash."""
    if len(names) < 2:
        return 0
    shared = os.path.commonprefix(list(names))  # noqa: RUF071 (names, not paths)
    return max(shared.rfind("."), shared.rfind("/")) + 1


def logarithmic(axes: Any) -> None:
    """A logarithmic x axis, whose numbers don't overlap where it spans little."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high < 100 * low:
        axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    else:
        axes.xaxis.set_minor_formatter(NullFormatter())


def shortened(name: str) -> str:
    """A name as short as tells layers apart.

    Exporters repeat themselves (`/blocks/blocks.0/conv1/Conv`); of what is long still, the middle
    goes.

    >>> shortened("/blocks/blocks.0/conv1/Conv"), shortened("encoder.layers.11.self_attn.out_proj")
    ('blocks.0/conv1/Conv', 'encoder.layers….out_proj')
    """
    parts = [part for part in name.split("/") if part]
    following = [*parts[1:], ""]
    kept = [p for p, after in zip(parts, following, strict=True) if not after.startswith(f"{p}.")]
    short = "/".join(kept)
    if len(short) > LONGEST_NAME:
        short = f"{short[: LONGEST_NAME - 10]}…{short[-9:]}"
    return short.replace("$", r"\$")  # which would begin a formula


@styled
def save(drawn: Any, path: Path) -> None:
    """Write a figure; its ending says how."""
    drawn.savefig(path, dpi=160, metadata=_undated(path.suffix.lower()))


@styled
def svg(drawn: Any, label: str) -> str:
    """A figure as an SVG element that fits the width it is given; `label` is read aloud."""
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", metadata=_undated(".svg"))
    text = buffer.getvalue()
    start = text.index("<svg") + len("<svg")
    escaped = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'<svg role="img" aria-label="{escaped}"{text[start:]}'


def _undated(suffix: str) -> dict[str, Any]:
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix, {})
