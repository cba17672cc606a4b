"""Types of options: what a text must look like, and what it becomes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

import click
from click.shell_completion import CompletionItem


class _Type(click.ParamType[Any]):
    """A type whose name says what to write, letter by letter."""

    def get_metavar(self, *_: Any, **__: Any) -> str:
        return self.name


class InputShape(_Type):
    name = "NAME=1,3,224,224"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, tuple[int, ...]]:
        name, separator, sizes = str(value).rpartition("=")
        try:
            shape = tuple(int(size) for size in sizes.replace("x", ",").split(","))
        except ValueError:
            shape = ()
        if not separator or not name or not shape:
            self.fail(f"{value!r} is not of the form {self.name}", param, ctx)
        if min(shape) < 1:
            self.fail(f"{value!r}: sizes are whole numbers from 1 on", param, ctx)
        return name, shape


class NamedSize(_Type):
    name = "NAME=N"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, int]:
        name, separator, size = str(value).rpartition("=")
        if not separator or not name:
            self.fail(f"{value!r} is not of the form {self.name}, as batch=8 is", param, ctx)
        if not size.isdecimal() or int(size) < 1:
            self.fail(f"{value!r}: a size is a whole number from 1 on, as in {name}=8", param, ctx)
        return name, int(size)


class Shares(_Type):
    name = "0.25,0.5,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        parts: Any = value.split(",") if isinstance(value, str) else value
        between = click.FloatRange(0, 1, min_open=True, max_open=True)
        shares = (float(click.FLOAT.convert(part, param, ctx)) for part in parts)
        return tuple(sorted({between.convert(share, param, ctx) for share in shares}))


class Ratios(_Type):
    """`0.9:0.3:0.1` is 0.9, 0.8, ..., 0.3; or a list with commas."""

    name = "0.9:0.3:0.1"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        text = str(value)
        try:
            parts = [Decimal(part) for part in re.split("[,:]", text)]
        except InvalidOperation:
            self.fail(f"{text!r} is not of the form {self.name} or 0.9,0.5", param, ctx)
        if ":" in text:
            if text.count(":") != 2 or "," in text or not all(part > 0 for part in parts):
                self.fail(f"{text!r} is not of the form {self.name}: first, last, step", param, ctx)
            first, last, step = parts
            count = int(abs(first - last) / step) + 1
            parts = [first + n * (step if last > first else -step) for n in range(count)]
        return tuple(float(part) for part in parts)


class Choices(_Type):
    """Some of the names that there are, with commas."""

    def __init__(self, names: Iterable[str]) -> None:
        self._choice = click.Choice(list(names))
        self.name = f"[{'|'.join(self._choice.choices)}],..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        names = value.split(",") if isinstance(value, str) else value
        return tuple(self._choice.convert(name, param, ctx) for name in names)

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        found = self._choice.shell_complete(ctx, param, last)
        return [CompletionItem(before + comma + item.value) for item in found]


class RoundTo(_Type):
    name = "auto|N"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | None:
        if value in (None, "auto"):
            return None
        if not re.fullmatch(r"0*[1-9]\d*", str(value)):
            self.fail(f"{value!r} is neither auto nor a whole number from 1 on", param, ctx)
        return int(value)


class Bytes(_Type):
    name = "4GB"
    _UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}  # noqa: RUF012

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", str(value).strip(), re.IGNORECASE)
        if found is None:
            self.fail(f"{value!r} is not a size such as 4GB or 512MB", param, ctx)
        return int(float(found[1]) * self._UNITS[found[2].upper()])
