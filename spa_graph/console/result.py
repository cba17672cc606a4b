"""The table of a run, and what is to be said about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from spa_graph.console.inspection import show_unsupported
from spa_graph.console.text import duration, plain, ratio, scaled, stdout, table
from spa_graph.passes.report import DEAD, budget_met, measured_for


def show_result(report: dict[str, Any], more: Sequence[tuple[str, float, float]] = ()) -> None:
    """The table of a run: before, after, ratio."""
    rows = table("", "before", "after", "after / before")
    before, after = report["before"], report["after"]
    for key, title in (
        ("flops", "FLOPs"),
        ("params", "parameters"),
        ("memory", "memory, peak"),
        ("bytes", "file size"),
        ("channels", "channels"),
    ):
        if key in before:
            unit = "B" if key in ("bytes", "memory") else ""
            values = [
                plain(v) if key == "channels" else scaled(v, unit)
                for v in (before[key], after[key])
            ]
            rows.add_row(title, *values, ratio(after[key], before[key]))
    latency = report.get("latency")
    if latency:
        rows.add_row(
            f"latency, median of {latency['runs']}",
            *(f"{latency[key]:.3g} ms" for key in ("before_ms", "after_ms")),
            f"{latency['after_ms'] / latency['before_ms']:.2f}",  # timings have no four digits
        )
    for title, first, second in more:
        rows.add_row(title, f"{first:.4f}", f"{second:.4f}", ratio(second, first))
    console = stdout()
    console.print(rows)
    console.print(measured_for(report))
    if "latency_budget" in report:
        console.print(budget_met(report["latency_budget"], latency))
    _show_last_resort(console, report)
    _show_reconstruction(console, report)
    _show_training(console, report)
    _show_proof(console, report.get("verification"))
    show_unsupported(console, report["frozen"])


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
        if "calibration_estimate" in report and "finetune" not in report:
            better = ", real samples do it better" * (report["calibrate_with"] == "data-free")
            console.print(
                "the weights that are left were not refitted; "
                f"--calibrate {report['calibrate_with']} would do it in "
                f"about {duration(report['calibration_estimate'])}{better}"
            )
        return
    console.print(
        f"calibrated on {calibration['source']}: {calibration['fitted_to']} fitted to, "
        f"{calibration['held_out']} held out, judged by {calibration['judged_by']} others"
    )
    found = calibration.get("reconstruction")
    if found is None:
        if calibration["kind"] == "random tokens" and "finetune" not in report:
            console.print(
                "the weights that are left were not refitted: random tokens say too little of real "
                "ones for that, samples do it (--calibrate FILE)"
            )
        return
    if found["undone"]:
        console.print("refitting did not help on samples that it had not seen, so it was undone")
        return
    layers = found["layers"]
    refitted = sum(layer["after"] < layer["before"] for layer in layers)
    console.print(
        f"refitted {refitted} of {len(layers)} layers: the outputs' error on held-out samples fell "
        f"from {found['before']:.2g} to {found['after']:.2g} of their variance"
    )


def _show_training(console: Console, report: dict[str, Any]) -> None:
    """How the loss went."""
    losses = report.get("finetune", {}).get("losses")
    if losses:
        epochs = f"{len(losses)} epoch{'s' * (len(losses) > 1)}"
        console.print(f"fine-tuned for {epochs}: loss {losses[0]:.4g} -> {losses[-1]:.4g}")


def _show_proof(console: Console, proof: dict[str, Any] | None) -> None:
    if proof is None:
        return
    if not proof["alive"]:
        console.print(DEAD, style="bold")
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
