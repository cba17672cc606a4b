"""Commands that refuse options which would be ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from spa_graph.passes.options import NEEDS, check_needs

CONDITIONS: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("provider", "threads", "batch"), ("latency", "latency_seconds")
)
"""What is asked of measurements, and the options that measure; as NEEDS."""


class Command(click.Command):
    """A command whose options have an effect, or are refused.

    Args:
        needs: by option those of which one must be there, where they are options of the command.
    """

    def __init__(
        self, *args: Any, needs: Mapping[str, Sequence[str]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._needs = NEEDS | CONDITIONS if needs is None else needs

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:  # as for completion
            default = (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
            given = {name for name in ctx.params if ctx.get_parameter_source(name) not in default}
            check_needs(self._needs, given, {name: bool(v) for name, v in ctx.params.items()})
        return rest
