"""What `spa-prune bench` measured, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spa_graph.console.text import scaled, stdout, table
from spa_graph.runtime.inputs import shapes_text

SHOWN = 12


def show_bench(data: dict[str, Any]) -> None:
    """Times, ratios, memory, and what the operators take."""
    console = stdout()
    models, first = data["models"], data["models"][0]
    rows = table(
        "network", "median", "middle half", "samples / s", "peak memory", "file size",
        "time / first (95%)",
    )  # fmt: skip
    for number, model in enumerate(models):
        low, high = model["quartiles_ms"]
        memory = model["peak_memory"]
        rows.add_row(
            Path(model["file"]).name,
            f"{model['median_ms']:.3g} ms",
            f"{low:.3g} to {high:.3g}",
            f"{model['throughput']:.4g}",
            scaled(memory, "B") if memory is not None else "unknown",
            scaled(model["bytes"], "B"),
            _ratio(data["ratios"][number - 1]) if number else "",
        )
    console.print(rows)
    threads = "1 thread" if data["threads"] == 1 else f"{data['threads']} threads"
    console.print(
        f"{data['runs']} runs{' each in turn' * (len(models) > 1)}, {data['provider']}, {threads}, "
        f"input {shapes_text(data['inputs'])}"
    )
    if first["peak_memory"] is None:
        console.print("peak memory can be measured on Linux only")
    console.print(_operators(models))
    about = data["machine"]
    console.print(
        f"{about['processor']}, {about['cores']} cores, {about['system']}, "
        f"onnxruntime {data['versions']['onnxruntime']}"
    )


def _ratio(ratio: dict[str, Any]) -> str:
    low, high = ratio["interval"]
    return f"{ratio['median']:.3f} ({low:.3f} to {high:.3f})"


def _operators(models: list[dict[str, Any]]) -> Any:
    """Milliseconds per operator type; the operators themselves are part of the JSON."""
    names = [Path(model["file"]).name for model in models]
    rows = table("operator type, as it runs", *(f"ms in {name}" for name in names))
    kinds = dict.fromkeys(kind for model in models for kind in model["operator_types"])
    costliest = sorted(
        kinds, key=lambda kind: -max(m["operator_types"].get(kind, 0.0) for m in models)
    )
    for kind in costliest[:SHOWN]:
        rows.add_row(kind, *(f"{m['operator_types'].get(kind, 0.0):.3f}" for m in models))
    rest = costliest[SHOWN:]
    if rest:
        sums = [sum(m["operator_types"].get(kind, 0.0) for kind in rest) for m in models]
        rows.add_row(f"{len(rest)} others", *(f"{each:.3f}" for each in sums))
    return rows
