"""The page of a run of `spa-prune sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import escape

from spa_graph.passes.cost import NAMES
from spa_graph.pictures.page import Section, Table, drawing, page
from spa_graph.pictures.sweep import sweep_figure

_COLUMNS = {
    "quantity": "{}",
    "asked": "{:g}",
    "flops": "{:.4f}",
    "params": "{:.4f}",
    "memory": "{:.4f}",
    "bytes": "{:,}",
    "error": "{:.3g}",
    "metric": "{:.4g}",
    "time": "{:.2f}",
}


def title(model: str) -> str:
    """What the page of a network's sweep is called; `model` is its file's name."""
    return f"spa-prune sweep: {model}"


def is_sweep_page(path: Path, model: str) -> bool:
    """Whether a file is the page of an earlier sweep of this network."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return f"<title>{escape(title(model))}</title>" in file.read(1000)


def sweep_page(data: dict[str, Any], command: str) -> str:
    """The page of a sweep: the curve, and all networks."""
    about, points = data["machine"], data["points"]
    shown = {k: form for k, form in _COLUMNS.items() if any(p.get(k) is not None for p in points)}
    rows = [
        (
            point["criterion"],
            *(_cell(point.get(key), form) for key, form in shown.items()),
            "best" if point["frontier"] else point.get("failure", ""),
            point.get("file", ""),
        )
        for point in points
    ]
    lines = [
        "flops, params and memory are shares of the whole network's; error is the outputs' on "
        "held-out calibration data, as a share of their variance; time is latency after / before. "
        f"best: no other network here is lower in {NAMES[data['cost']]} and as good."
    ]
    whole = (data["whole"] or {}).get("metric")
    if whole is not None:
        lines.append(f"The whole network's metric is {whole:.4g}.")
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    machine = f"{about['processor']}, {about['cores']} cores, {about['system']}"
    return page(
        title(data["model"]),
        [
            Section(
                "Quality against budget",
                picture=drawing(sweep_figure(data), f"quality against {NAMES[data['cost']]}"),
            ),
            Section("What was run", [versions, machine, data["folder"]], code=command),
            Section(
                "Networks",
                lines,
                table=Table(("criterion", *shown, "", "file"), rows),
                wide=True,
            ),
        ],
    )


def _cell(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)
