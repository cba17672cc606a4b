"""The options of the PyTorch API, as the passes take them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from torch import nn

from spa_graph.errors import OptionError, SpaError
from spa_graph.passes.options import Options
from spa_graph.passes.pipeline import check_data_taken, chosen_criterion

ReturnType = Literal["module", "graph", "exported"]
FIELDS = (
    "flops", "params", "ratio", "criterion", "aggregate", "normalize", "seed", "min_channels",
    "round_to", "exclude", "exact", "scope", "attention", "groups", "data", "loss", "samples",
    "calibrate", "preprocess", "reconstruct", "allocation", "memory_limit",
)  # fmt: skip


def make_options(given: dict[str, Any], *, budget: bool) -> Options:
    """Options from keywords.

    Raises:
        OptionError: one is unknown or wrong, or the budget is missing.
    """
    unknown = sorted(given.keys() - set(FIELDS))
    if unknown:
        raise OptionError(f"unknown option `{unknown[0]}`; there are: {', '.join(sorted(FIELDS))}")
    exclude = given.get("exclude", ())
    if not isinstance(exclude, str):
        given = given | {"exclude": tuple(exclude)}
    options = Options(**given)
    criterion = chosen_criterion(options)
    if criterion.needs_data and options.calibrate is None:
        raise OptionError(
            f"criterion {options.criterion} needs calibration data: add calibrate=loader, or "
            'calibrate="data-free"'
        )
    if not criterion.needs_gradients:
        check_data_taken([options])
    if criterion.needs_gradients and options.allocation == "distortion":
        raise OptionError(
            f"allocation distortion can't be had with criterion {criterion.name}, whose gradients "
            "are the module's: leave it out, or use a criterion that needs none"
        )
    if budget and options.budget is None and options.ratio is None:
        raise OptionError("give a budget: flops, params or ratio")
    return options


def check_return_type(value: str | None) -> None:
    if value is not None and value not in get_args(ReturnType):
        raise OptionError(f"return_type {value}: choose among {', '.join(get_args(ReturnType))}")


def excluded(
    model: nn.Module, patterns: Sequence[str], tied: dict[str, list[str]]
) -> tuple[str, ...]:
    """The parameters that patterns name, directly or through a module that holds them.

    Raises:
        OptionError: nothing has such a name.
    """
    modules = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    found: dict[str, None] = {}
    for pattern in patterns:
        inside = tuple(f"{name}." for name in modules if fnmatchcase(name, pattern))
        own = {
            first: None
            for first, names in tied.items()
            if any(fnmatchcase(name, pattern) or name.startswith(inside) for name in names)
        }
        if not own and not inside:
            raise OptionError(f"exclude {pattern}: no parameter or module has such a name")
        found |= own
    return tuple(found)


@contextmanager
def in_python() -> Iterator[None]:
    """Errors name the options as keywords, not as the command line does."""
    try:
        yield
    except SpaError as error:
        text = re.sub(r"--([a-z][a-z-]*)", lambda found: found[1].replace("-", "_"), str(error))
        text = text.replace("`spa-prune inspect`", "`spa_graph.torch.analyze`")
        if text == str(error):
            raise
        raise type(error)(text) from error
