"""A page that stands by itself: one file, no script, nothing from the network.

Pictures are SVG within the page, and everything that they show is a table too. A plotting library
of the browser's would let a reader zoom, at the price of megabytes of script in each report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from spa_graph.errors import OptionError
from spa_graph.pictures.style import drawable, svg


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under a head; `text` if not only the first column holds words."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page. A table that is `folded` opens on a click on that text."""

    title: str
    lines: Sequence[str] = ()
    code: str = ""
    picture: Any = None
    table: Table | None = None
    folded: str = ""
    wide: bool = False


def check_pages() -> None:
    """Whether a page can be made.

    Raises:
        OptionError: a package is missing.
    """
    if not drawable() or find_spec("jinja2") is None:
        raise OptionError("--html needs matplotlib and jinja2: pip install 'spa-prune[report]'")


def drawing(figure: Any, label: str) -> Any:
    """A figure as a part of the page."""
    from markupsafe import Markup

    return Markup(svg(figure, label))


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole page; everything but pictures is escaped."""
    from jinja2 import Environment

    template = files("spa_graph.pictures").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(title=title, sections=sections)
