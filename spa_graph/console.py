"""What people see on a terminal: progress on stderr, tables on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from spa_graph.passes.options import Progress as Callback

_WIDTH_WHEN_PIPED = 120


def _console() -> Console:
    return Console(
        width=None if sys.stdout.isatty() else _WIDTH_WHEN_PIPED, highlight=False, markup=False
    )


@contextmanager
def progress(quiet: bool) -> Iterator[Callback | None]:
    """A callback that shows each step: bars on a terminal, a line per step elsewhere."""
    if quiet:
        yield None
        return
    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        yield _print_steps(console)
        return
    columns = (
        TextColumn("{task.description:16}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def update(step: str, done: int, total: int, detail: str = "") -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total, detail="")
            if not bars.tasks[tasks[step]].finished:
                bars.update(tasks[step], completed=done, total=total, detail=detail)

        yield update


def _print_steps(console: Console) -> Callback:
    started: set[str] = set()

    def update(step: str, done: int, total: int, detail: str = "") -> None:  # noqa: ARG001
        if step not in started:
            started.add(step)
            console.print(f"{step} ...")
        if detail:
            console.print(f"  {detail}")

    return update


def show_result(report: dict[str, Any], more: Sequence[tuple[str, float, float]] = ()) -> None:
    """The table of a run: before, after, ratio."""
    table = Table(show_edge=False, pad_edge=False)
    for name in ("", "before", "after", "after / before"):
        table.add_column(name, justify="left" if not name else "right")
    before, after = report["before"], report["after"]
    for key, title in (
        ("flops", "FLOPs"),
        ("params", "parameters"),
        ("bytes", "file size"),
        ("channels", "channels"),
    ):
        if key in before:
            unit = "B" if key == "bytes" else ""
            values = [
                _plain(v) if key == "channels" else _scaled(v, unit)
                for v in (before[key], after[key])
            ]
            table.add_row(title, *values, _ratio(after[key], before[key]))
    latency = report.get("latency")
    if latency:
        table.add_row(
            f"latency, median of {latency['runs']}",
            *(f"{latency[key]:.3g} ms" for key in ("before_ms", "after_ms")),
            f"{latency['after_ms'] / latency['before_ms']:.2f}",  # timings have no four digits
        )
    for title, first, second in more:
        table.add_row(title, f"{first:.4f}", f"{second:.4f}", _ratio(second, first))
    console = _console()
    console.print(table)
    sizes = ", ".join(
        f"{name} {'x'.join(map(str, shape))}" for name, shape in report["input_shapes"].items()
    )
    console.print(f"FLOPs and latency are for input {sizes}")
    _show_last_resort(console, report)
    _show_reconstruction(console, report)
    _show_proof(console, report.get("verification"))
    _show_unsupported(console, report["frozen"])


def _show_last_resort(console: Console, report: dict[str, Any]) -> None:
    """Say that the residual width of a pre-norm transformer was touched, unless asked to."""
    cut = [g for g in report["groups"] if g["pre_norm"] and g["kept"] < g["channels"]]
    if cut and "residual" not in report["options"].get("scope", ()):
        console.print(
            "the budget took channels from the residual width too, which every layer reads; "
            "--scope heads,ffn forbids it"
        )


def _show_reconstruction(console: Console, report: dict[str, Any]) -> None:
    """What calibration brought; or what it would cost."""
    calibration = report.get("calibration")
    if calibration is None:
        if "calibration_estimate" in report:
            console.print(
                "the weights that are left were not refitted; --calibrate data-free would do it in "
                f"about {_duration(report['calibration_estimate'])}, real samples do it better"
            )
        return
    console.print(
        f"calibrated on {calibration['source']}: {calibration['fitted_to']} fitted to, "
        f"{calibration['held_out']} held out"
    )
    found = calibration.get("reconstruction")
    if found is None:
        return
    if found["undone"]:
        console.print("refitting did not help on the held-out samples, so it was undone")
        return
    layers = found["layers"]
    refitted = sum(layer["after"] < layer["before"] for layer in layers)
    console.print(
        f"refitted {refitted} of {len(layers)} layers: the outputs' error on held-out samples fell "
        f"from {found['before']:.2g} to {found['after']:.2g} of their variance"
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _show_proof(console: Console, proof: dict[str, Any] | None) -> None:
    if proof is None:
        return
    if proof["output_varied"]:
        console.print(
            f"verified: equals the original with zeroed channels to {proof['error']:.1e} of the "
            f"output's range (tolerated {proof['tolerated']:.1e})"
        )
    else:
        console.print(
            "verified only in part: it runs and its shapes are right, but its output is constant "
            "on random input"
        )


def show_inspection(data: dict[str, Any]) -> None:
    """Groups, costs and frozen parts as tables."""
    console = _console()
    console.print(
        f"{data['model']['operators']} operators, {_scaled(data['flops'])} FLOPs, "
        f"{_scaled(data['params'])} parameters, {data['channels']} prunable channels in "
        f"{len(data['groups'])} groups"
    )
    console.print(
        f"smallest reachable: {data['smallest_flops_ratio']:.4f} of the FLOPs, "
        f"{data['smallest_params_ratio']:.4f} of the parameters"
    )
    for change in data["canonicalized"]:
        console.print(f"canonical form: {change}")
    groups = Table(title="channel groups", title_justify="left", show_edge=False, pad_edge=False)
    for name in ("group", "structure", "channels", "removal", "weights", "also"):
        groups.add_column(
            name, justify="right" if name in ("channels", "weights") else "left", overflow="fold"
        )
    for group in data["groups"]:
        others = [f"{p['name']}:{p['axis']}" for p in group["parameters"]]
        shown = [other for other in others if other != group["name"]]
        more = f" +{len(shown) - 3}" if len(shown) > 3 else ""
        kind = "exact" if group["exact"] else "renormalising"
        groups.add_row(
            group["name"],
            group["structure"],
            str(group["channels"]),
            kind,
            str(len(others)),
            ", ".join(shown[:3]) + more,
        )
    console.print(groups)
    costs = Table(title="cost per operator", title_justify="left", show_edge=False, pad_edge=False)
    for name in ("operator", "type", "FLOPs", "parameters"):
        costs.add_column(
            name, justify="left" if name in ("operator", "type") else "right", overflow="fold"
        )
    for row in data["operators"]:
        costs.add_row(row["name"], row["type"], _scaled(row["flops"]), _scaled(row["params"]))
    console.print(costs)
    _show_frozen(console, data["frozen"])


def _show_frozen(console: Console, frozen: dict[str, Any]) -> None:
    reasons = Table(
        title="frozen weight axes", title_justify="left", show_edge=False, pad_edge=False
    )
    reasons.add_column("weight:axis", overflow="fold")
    reasons.add_column("why", overflow="fold")
    for axis, reason in frozen["parameters"].items():
        reasons.add_row(axis, reason)
    console.print(reasons)
    _show_unsupported(console, frozen)


def _show_unsupported(console: Console, frozen: dict[str, Any]) -> None:
    if frozen["by_type"]:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in frozen["by_type"].items())
        console.print(f"frozen around operators: {kinds}")
        for reason in list(dict.fromkeys(row["reason"] for row in frozen["operators"]))[:5]:
            console.print(f"  {reason}")


def _plain(value: float) -> str:
    return f"{int(value):,}"


def _scaled(value: float, unit: str = "") -> str:
    for power, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= power:
            return f"{value / power:.3g} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def _ratio(after: float, before: float) -> str:
    return f"{after / before:.4f}" if before else "-"
