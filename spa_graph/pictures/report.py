"""The page of a run of `spa-prune prune` or `apply`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from spa_graph.passes.report import DEAD, budget_met, measured_for
from spa_graph.pictures.page import Section, Table, drawing, page
from spa_graph.pictures.pruning import (
    cuts_figure,
    importance_figure,
    kept_figure,
    operators_figure,
)
from spa_graph.pictures.sweep import sweep_figure

MOST_REASONS = 200


def report_page(report: dict[str, Any], command: str, sweep: dict[str, Any] | None = None) -> str:
    """The page of a report.

    Args:
        report: as `prune` gives it.
        command: what was typed.
        sweep: the points of a sweep of the same network, if there was one.
    """
    return page(f"spa-prune: {report['model']['name']}", list(_sections(report, command, sweep)))


def _sections(
    report: dict[str, Any], command: str, sweep: dict[str, Any] | None
) -> Iterator[Section]:
    yield _summary(report)
    yield Section("What was run", code=command, lines=_circumstances(report))
    yield _groups(report["groups"])
    importance = report.get("importance")
    if importance:
        yield Section(
            "Importance",
            [f"By {report['options'].get('criterion', 'the plan')}. Less important channels go."],
            picture=drawing(importance_figure(importance), "histogram of importances"),
        )
        yield Section(
            "The cut in each group",
            picture=drawing(cuts_figure(importance), "ranges of importance by group"),
        )
    for key, title, unit in (("flops", "FLOPs", "FLOPs"), ("params", "Parameters", "parameters")):
        rows = [row for row in report["operators"] if row[key]]
        yield _operators(
            f"{title} per operator",
            [row["name"] for row in rows],
            [row[key] for row in rows],
            [row[f"{key}_after"] for row in rows],
            unit,
        )
    if report.get("latency", {}).get("operators"):
        yield _latency(report["latency"])
    if sweep is not None:
        yield Section(
            "Accuracy against budget",
            [f"Of the sweep in {sweep['folder']}."],
            picture=drawing(sweep_figure(sweep), "quality against budget"),
        )
    yield _frozen(report["frozen"])


def _summary(report: dict[str, Any]) -> Section:
    before, after = report["before"], report["after"]
    rows = [
        (title, f"{before[key]:,.0f}", f"{after[key]:,.0f}", f"{after[key] / before[key]:.4f}")
        for key, title in (
            ("flops", "FLOPs"),
            ("params", "parameters"),
            ("memory", "bytes of memory, peak"),
            ("bytes", "bytes of the file"),
            ("channels", "channels"),
        )
        if before.get(key)
    ]
    lines = [_proof(report.get("verification"))]
    latency = report.get("latency")
    if latency:
        first, second = latency["before_ms"], latency["after_ms"]
        rows.append(("latency, ms", f"{first:.3g}", f"{second:.3g}", f"{second / first:.2f}"))
        low, high = latency["ratio_interval"]
        lines.append(
            f"Latency: medians of {latency['runs']} runs each in turn; the ratio lies between "
            f"{low:.3f} and {high:.3f} with 95% confidence."
        )
    if "latency_budget" in report:
        lines.append(f"The {budget_met(report['latency_budget'], report.get('latency'))}.")
    calibration = report.get("calibration")
    if calibration:
        lines.append(
            f"Calibrated on {calibration['source']}: {calibration['fitted_to']} fitted to, "
            f"{calibration['held_out']} held out, judged by {calibration['judged_by']} others."
        )
    lines.append("This proves the surgery, not the accuracy: measure your metric.")
    head = ("", "before", "after", "after / before")
    return Section("Summary", lines, table=Table(head, rows), wide=True)


def _proof(proof: dict[str, Any] | None) -> str:
    if proof is None:
        return "Not verified."
    if not proof["alive"]:
        return f"{DEAD[0].upper()}{DEAD[1:]}."
    if not proof["output_varied"]:
        return "Verified only in part: its output is constant on random input."
    return (
        f"Verified: equals the original with zeroed channels to {proof['error']:.1e} of the "
        f"output's range (tolerated {proof['tolerated']:.1e})."
    )


def _circumstances(report: dict[str, Any]) -> list[str]:
    about = report["machine"]
    return [
        ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        f"{about['processor']}, {about['cores']} cores, {about['system']}",
        measured_for(report),
        f"{sum(report['seconds'].values()):.1f} seconds",
    ]


def _groups(groups: Sequence[dict[str, Any]]) -> Section:
    rows = [
        (g["name"], g["structure"], str(g["channels"]), str(g["kept"]),
         "exact" if g["exact"] else "renormalising")
        for g in groups
    ]  # fmt: skip
    return Section(
        "Channels",
        picture=drawing(kept_figure(groups), "channels kept by group"),
        table=Table(("group", "structure", "before", "after", "removal"), rows),
        folded=f"all {len(rows)} groups",
    )


def _operators(
    title: str, names: Sequence[str], before: Sequence[float], after: Sequence[float], unit: str
) -> Section:
    rows = [
        (name, _plain(first), _plain(second))
        for name, first, second in zip(names, before, after, strict=True)
    ]
    drawn = operators_figure(names, before, after, unit)
    return Section(
        title,
        picture=drawing(drawn, f"{title}, before and after"),
        table=Table(("operator", "before", "after"), rows),
        folded=f"all {len(rows)} operators",
    )


def _latency(latency: dict[str, Any]) -> Section:
    """Operators of the same name stand side by side; ONNX Runtime fuses some under new ones."""
    sides = []
    for side in ("before", "after"):
        sums: Counter[str] = Counter()
        for row in latency["operators"][side]:
            sums[row["name"]] += row["ms"]
        sides.append(sums)
    names = list(dict.fromkeys([*sides[0], *sides[1]]))
    return _operators(
        "Latency per operator, as ONNX Runtime runs them",
        names,
        [sides[0][name] for name in names],
        [sides[1][name] for name in names],
        "ms",
    )


def _frozen(frozen: dict[str, Any]) -> Section:
    parameters, kinds = frozen["parameters"], frozen["by_type"]
    lines = [f"{len(parameters)} axes of weights can't be pruned."] if parameters else ["Nothing."]
    if kinds:
        named = ", ".join(f"{kind} ({count})" for kind, count in kinds.items())
        lines.append(f"Frozen around operators without a usable rule: {named}.")
    rows = list(parameters.items())[:MOST_REASONS]
    rows += [(f"operator {row['name']}", row["reason"]) for row in frozen["operators"]]
    more = len(parameters) - MOST_REASONS
    if more > 0:
        lines.append(f"{more} more are in the JSON report.")
    table = Table(("weight:axis", "why"), rows, text=True) if rows else None
    folded = f"all {len(rows)}" if len(rows) > 12 else ""
    return Section("What is frozen, and why", lines, table=table, folded=folded, wide=True)


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
