"""Prunes what the export scripts wrote, and puts the tables into docs/frameworks.md.

    python -m benchmarks.frameworks.table digits FOLDER     # before train_*.py
    python -m benchmarks.frameworks.table run FOLDER
    python -m benchmarks.frameworks.table bench FOLDER      # on an idle machine
    python -m benchmarks.frameworks.table render FOLDER

FOLDER is what `export_*.py` and `train_*.py` wrote to. Each file is pruned by the plain command, as
a process of its own. Results are lines of FOLDER/frameworks.jsonl; of what two lines say of the
same network the later counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from benchmarks.frameworks.accuracy import BUDGETS, REPAIRS, accuracies, write_digits
from benchmarks.frameworks.measured import (
    LEVELS,
    PruningError,
    Record,
    latency,
    prune,
    transposes,
    transposes_run,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "frameworks.md"
EXPORTS, RESULTS = "exports.jsonl", "frameworks.jsonl"
COLUMNS = (
    "network", "exporter", "FLOPs", "parameters", "file", "latency", "Transposes",
    *(f"run at {level}" for level in LEVELS), "frozen around",
)  # fmt: skip
SCORES = ("network", "dense", *(f"{budget} {repair}" for budget in BUDGETS for repair in REPAIRS))
HALF = "0.5"


def read(path: Path) -> dict[str, Record]:
    """Lines of JSON by the names in them; what later ones say is added."""
    found: dict[str, Record] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        record = json.loads(line)
        found.setdefault(record["name"], {}).update(record)
    return found


def _add(path: Path, record: Record) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(record["name"], record.get("status") or record, flush=True)


def _pruned(folder: Path, name: str) -> Path:
    return folder / f"{name}.pruned.onnx"


def run(folder: Path, names: list[str]) -> None:
    """Prune each network that isn't in the results, or is named."""
    done = read(folder / RESULTS)
    for name, export in read(folder / EXPORTS).items():
        if name in names or (not names and name not in done):
            record = export | (measure(folder, export) if export["status"] == "ok" else {})
            _add(folder / RESULTS, record)


def measure(folder: Path, export: Record) -> Record:
    """What the tables say of one network, less its latency."""
    path, target = folder / f"{export['name']}.onnx", _pruned(folder, export["name"])
    try:
        report = prune(path, target, "--flops", HALF)
        scores = {"accuracy": accuracies(path)} if "task" in export else {}
    except PruningError as error:
        return {"status": str(error)}
    return {
        "latency": None,  # that of another file, if there is one
        **{key: report[key] for key in ("ratio", "before", "after", "verification")},
        "frozen": report["frozen"]["by_type"],
        "transposes": [transposes(each) for each in (path, target)],
        "transposes_run": [transposes_run(each) for each in (path, target)],
        **scores,
    }


def time(folder: Path, names: list[str], seconds: float) -> None:
    """Measure each pair of files whose latency isn't in the results, or is named."""
    for name, record in read(folder / RESULTS).items():
        missing = record["status"] == "ok" and not record.get("latency")
        if name in names or (not names and missing):
            pair = folder / f"{name}.onnx", _pruned(folder, name)
            _add(folder / RESULTS, {"name": name, "latency": latency(*pair, seconds)})


def render(folder: Path) -> None:
    """Put the tables into the page, each between its marks."""
    records = sorted(read(folder / RESULTS).values(), key=lambda record: record["framework"])
    page = PAGE.read_text()
    page = _between(page, "table", COLUMNS, map(_row, records), _conditions(records))
    scored = (_scores(record) for record in records if "accuracy" in record)
    PAGE.write_text(_between(page, "accuracy", SCORES, scored))


def _conditions(records: Iterable[Record]) -> str:
    """Where latencies were measured, and how busy that machine was with other things."""
    measured = [found for record in records if (found := record.get("latency"))]
    if not measured:
        return ""
    processors = ", ".join(sorted({each["machine"]["processor"] for each in measured}))
    loads = [each["load"] for each in measured]
    return (
        f"\nLatencies: one thread of {processors}, on a machine that others used meanwhile "
        f"(load average {min(loads):.1f} to {max(loads):.1f}).\n"
    )


def _between(
    page: str, name: str, columns: Iterable[str], rows: Iterable[list[str]], note: str = ""
) -> str:
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, rest = page.split(start)
    return f"{before}{start}\n{table}{note}\n{end}{rest.split(end)[1]}"


def _row(record: Record) -> list[str]:
    exporter = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    start = [record["name"], exporter]
    if record["status"] != "ok":
        why = ": ".join(filter(None, (record["status"], record.get("reason"))))
        return [*start, why, *[""] * (len(COLUMNS) - 3)]
    return [
        *start,
        *(f"{record['ratio'][key]:.3f}" for key in ("flops", "params", "bytes")),
        _latency(record.get("latency")),
        _change(record["transposes"]),
        *(_change([each[level] for each in record["transposes_run"]]) for level in LEVELS),
        ", ".join(f"{key} ({value})" for key, value in record["frozen"].items()),
    ]


def _change(counts: list[int]) -> str:
    return " → ".join(map(str, counts))


def _latency(found: Record | None) -> str:
    if found is None:
        return ""
    low, high = found["interval"]
    return f"{found['median']:.2f} ({low:.2f}–{high:.2f})"


def _scores(record: Record) -> list[str]:
    found = record["accuracy"]
    pruned = (found[budget][repair] for budget in BUDGETS for repair in REPAIRS)
    return [record["name"], *(f"{share:.1%}" for share in (found["dense"], *pruned))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["digits", "run", "bench", "render"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="only these, and once more if they were done")
    parser.add_argument("--seconds", type=float, default=3.0, help="of bench, for each network")
    arguments = parser.parse_args()
    if arguments.what == "digits":
        write_digits(arguments.folder)
    elif arguments.what == "run":
        run(arguments.folder, arguments.names)
    elif arguments.what == "bench":
        time(arguments.folder, arguments.names, arguments.seconds)
    else:
        render(arguments.folder)


if __name__ == "__main__":
    main()
