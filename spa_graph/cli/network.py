"""Networks as they are named on the command line: ONNX files, and those of other frameworks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from spa_graph.frontends.convert import convert
from spa_graph.frontends.formats import Format, as_onnx, format_of
from spa_graph.frontends.onnx import files

Shapes = Iterable[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Network:
    """A network as it was named.

    Attributes:
        given: the file or folder.
        kind: what it must be converted from; None for ONNX.
    """

    given: Path
    kind: Format | None

    @property
    def path(self) -> Path:
        """The ONNX file, which may have to be made yet."""
        return self.given if self.kind is None else as_onnx(self.given)

    def onnx(self, shapes: Shapes, *, quiet: bool) -> Path:
        """The ONNX file; it is made now if need be, which takes its time: check all else before.

        Args:
            shapes: sizes of inputs, for formats that don't hold them.
            quiet: don't say where it is.

        Raises:
            ModelError: it can't be converted.
        """
        if self.kind is not None:
            now = convert(self.given, self.kind, self.path, shapes)
            named = f"the {self.kind.name} {self.given}"
            done = f"converted {named} to {self.path}"
            if not quiet:
                click.echo(done if now else f"{self.path} is {named}, converted", err=True)
        return self.path

    def sources(self) -> list[Path]:
        """All files that are read.

        Raises:
            ModelError: an ONNX file can't be read.
        """
        if self.kind is None:
            return files.sources(files.load(self.given))
        folder = self.given.rglob("*") if self.given.is_dir() else ()
        return [self.path, self.given, *folder]


class NetworkType(click.Path):
    """An ONNX file, or one of another framework."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        path = Path(str(super().convert(value, param, ctx)))
        return Network(path, format_of(path))
