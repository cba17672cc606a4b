"""Where a run writes to, checked before any work is done."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import spa_graph
from spa_graph import console
from spa_graph.cli.network import Network, Shapes
from spa_graph.errors import OptionError
from spa_graph.frontends.onnx import files
from spa_graph.pictures.page import check_pages
from spa_graph.pictures.style import check_pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a run writes to, and what it prints; checked before any work is done."""

    model: Network
    output: Path | None
    plan: Path | None
    report: Path | None
    html: Path | None
    as_json: bool
    quiet: bool
    latency_seconds: float

    @classmethod
    def take(
        cls, model: Network, options: dict[str, Any], plan: Path | None, inputs: Sequence[Path] = ()
    ) -> Target:
        """Take the output options out of `options` and check them; `inputs` are read as well."""
        output = options.pop("output") or beside(model, ".pruned.onnx")
        report, html = options.pop("report_path"), options.pop("html")
        overwrite, dry_run = options.pop("overwrite"), options.pop("dry_run")
        if html is not None:
            check_pages()
        weights = output.parent / f"{output.name}.data"
        paths = [path for path in (output, weights, plan, report, html) if path is not None]
        for path in paths:
            if sum(_same_file(path, other) for other in paths) > 1:
                raise OptionError(
                    f"{path} is named twice; each output needs its own file "
                    f"({weights} is for weights)"
                )
        samples = [Path(given) for name in ("calibrate", "data") if (given := options.get(name))]
        check_inputs(paths, model, [*inputs, *samples])
        if dry_run:
            output = plan = report = html = None
        else:
            for path in paths:
                check_writable(path, overwrite)
        return cls(
            model=model,
            output=output,
            plan=plan,
            report=report,
            html=html,
            as_json=options.pop("as_json"),
            quiet=options.pop("quiet"),
            latency_seconds=options.pop("latency_seconds"),
        )

    def run(
        self,
        function: Callable[..., spa_graph.Result],
        input_shapes: Shapes,
        options: dict[str, Any],
    ) -> None:
        """Call `prune` or `apply_plan` with the options that are left, and show what it did."""
        model = self.model.onnx(input_shapes, quiet=self.quiet)
        with console.progress(self.quiet) as progress:
            result = function(
                model,
                output=self.output,
                latency_seconds=self.latency_seconds,
                profile=self.html is not None,
                progress=progress,
                input_shapes=dict(input_shapes),
                **options,
            )
        self._show(result)

    def _show(self, result: spa_graph.Result) -> None:
        """Write plan, report and page, print the table."""
        if self.plan is not None:
            with files.staged(self.plan) as draft:
                result.plan.save(draft)
        if self.report is not None:
            write_text(self.report, json.dumps(result.report, indent=1) + "\n")
        if self.html is not None:
            from spa_graph.pictures.report import report_page
            from spa_graph.studies.sweep.run import earlier

            write_text(self.html, report_page(result.report, typed(), earlier(self.model.path)))
        console.answer(result.report, self._tell, as_json=self.as_json, quiet=self.quiet)

    def _tell(self, report: dict[str, Any]) -> None:
        console.show_result(report)
        click.echo(
            "this proves the surgery, not the accuracy: measure your metric on the pruned network"
        )
        paths = (self.output, self.plan, self.report, self.html)
        written = [str(path) for path in paths if path]
        click.echo(f"wrote {', '.join(written)}" if written else "dry run: nothing was written")


def typed() -> str:
    """The command as it was typed, for a report."""
    return shlex.join(["spa-prune", *sys.argv[1:]])


def write_text(path: Path, text: str) -> None:
    """Write a file, complete or not at all."""
    with files.staged(path) as draft:
        draft.write_text(text, encoding="utf-8")


def beside(model: Network, ending: str) -> Path:
    """A file or folder beside the model that has its name."""
    return model.path.parent / f"{model.path.stem}{ending}"


def check_inputs(outputs: Sequence[Path], model: Network, others: Sequence[Path] = ()) -> None:
    """No output takes the place of what is read: the model, its weights, a plan, samples."""
    taken = [path for path in outputs if path.exists()]
    # only a file that exists can hold the model's weights, so most runs needn't look for them
    read = [model.given, model.path, *others, *(model.sources() if taken else ())]
    for path in outputs:
        if any(_same_file(path, source) for source in read):
            raise OptionError(
                f"{path} is part of the input; inputs are never modified: choose another"
            )


def _same_file(first: Path, second: Path) -> bool:
    if first.exists() and second.exists():
        return first.samefile(second)  # also where they are hard links
    return first.resolve() == second.resolve()


def check_writable(
    path: Path, overwrite: bool, hint: str = "choose another name, or pass --overwrite"
) -> None:
    if path.is_dir():
        raise OptionError(f"{path} is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise OptionError(f"cannot write {path}: it is a device, not a file")
    if not path.parent.is_dir():
        raise OptionError(f"cannot write {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise OptionError(f"cannot write {path}: no permission to write in {path.parent}")
    if path.exists() and not overwrite:
        raise OptionError(f"{path} exists; {hint}")


def check_picture(path: Path | None, model: Network, overwrite: bool) -> None:
    """Whether a picture of what was found about a model can be drawn and written.

    Raises:
        OptionError: it can't.
    """
    if path is None:
        return
    check_pictures(path)
    check_inputs([path], model)
    check_writable(path, overwrite)
