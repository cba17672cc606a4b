"""Where a run writes to, checked before any work is done."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import spa_graph
from spa_graph import console
from spa_graph.errors import OptionError
from spa_graph.frontends.onnx import files
from spa_graph.pictures.style import check_pictures


class Target:
    """Where a run writes to; everything about it is checked before any work is done."""

    def __init__(
        self,
        output: Path | None,
        plan: Path | None,
        report: Path | None,
        *,
        quiet: bool,
        latency_seconds: float,
    ) -> None:
        self.output = output
        self.plan = plan
        self.report = report
        self.quiet = quiet
        self.latency_seconds = latency_seconds

    @classmethod
    def take(
        cls, model: Path, options: dict[str, Any], plan: Path | None, inputs: Sequence[Path] = ()
    ) -> Target:
        """Take the output options out of `options` and check them; `inputs` are read as well."""
        output = options.pop("output") or model.with_name(f"{model.stem}.pruned.onnx")
        report, overwrite = options.pop("report_path"), options.pop("overwrite")
        dry_run, quiet = options.pop("dry_run"), options.pop("quiet")
        latency_seconds = options.pop("latency_seconds")
        weights = output.with_name(f"{output.name}.data")
        paths = [path for path in (output, weights, plan, report) if path is not None]
        for path in paths:
            if sum(_same_file(path, other) for other in paths) > 1:
                raise OptionError(
                    f"{path} is named twice; each output needs its own file "
                    f"({weights} is for weights)"
                )
        check_inputs(paths, model, inputs)
        if not dry_run:
            for path in paths:
                check_writable(path, overwrite)
        if dry_run:
            output = plan = report = None
        return cls(output, plan, report, quiet=quiet, latency_seconds=latency_seconds)

    def show(self, result: spa_graph.Result) -> None:
        """Write plan and report, print the table."""
        if self.plan is not None:
            with files.staged(self.plan) as draft:
                result.plan.save(draft)
        if self.report is not None:
            with files.staged(self.report) as draft:
                draft.write_text(json.dumps(result.report, indent=1) + "\n", encoding="utf-8")
        if self.quiet:
            return
        console.show_result(result.report)
        click.echo(
            "this proves the surgery, not the accuracy: measure your metric on the pruned network"
        )
        written = [str(path) for path in (self.output, self.plan, self.report) if path]
        click.echo(f"wrote {', '.join(written)}" if written else "dry run: nothing was written")


def check_inputs(outputs: Sequence[Path], model: Path, others: Sequence[Path]) -> None:
    """No output takes the place of a file that is read: the model, its weights, a plan."""
    taken = [path for path in outputs if path.exists()]
    # only a file that exists can hold the model's weights, so most runs needn't look for them
    read = [model, *others, *(files.sources(files.load(model)) if taken else ())]
    for path in outputs:
        if any(_same_file(path, source) for source in read):
            raise OptionError(
                f"{path} is part of the input; inputs are never modified: choose another"
            )


def _same_file(first: Path, second: Path) -> bool:
    if first.exists() and second.exists():
        return first.samefile(second)  # also where they are hard links
    return first.resolve() == second.resolve()


def check_writable(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise OptionError(f"{path} is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise OptionError(f"cannot write {path}: it is a device, not a file")
    if not path.parent.is_dir():
        raise OptionError(f"cannot write {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise OptionError(f"cannot write {path}: no permission to write in {path.parent}")
    if path.exists() and not overwrite:
        raise OptionError(f"{path} exists; choose another name, or pass --overwrite")


def check_picture(path: Path | None, model: Path, overwrite: bool) -> None:
    """Whether a picture of what was found about a model can be drawn and written.

    Raises:
        OptionError: it can't.
    """
    if path is None:
        return
    check_pictures(path)
    check_inputs([path], model, [])
    check_writable(path, overwrite)
