"""Prunes what the export scripts wrote, and puts the table into docs/frameworks.md.

    python -m benchmarks.frameworks.table run FOLDER --results frameworks.jsonl
    python -m benchmarks.frameworks.table render --results frameworks.jsonl

FOLDER is what `export_*.py` wrote to. Each file is pruned by the plain command, as a process of its
own. A result is one line of JSON; of two lines for the same network the later counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

PAGE = Path(__file__).resolve().parents[2] / "docs" / "frameworks.md"
MARKS = "<!-- table -->\n", "<!-- /table -->\n"
HEAD = """\
| network | exporter | FLOPs | parameters | file | Transposes | frozen around |
|---|---|---|---|---|---|---|
"""
Record = dict[str, Any]


def read(path: Path) -> dict[str, Record]:
    """Lines of JSON by the names in them."""
    records = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {record["name"]: record for record in records}


def prune(path: Path) -> Record:
    """The plain command on one file: what the table says of it."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "small.onnx"
        options = ["--flops", "0.5", "--latency-seconds", "0", "--json", "-o", str(target)]
        line = [sys.executable, "-m", "spa_graph", "prune", str(path), *options]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            return {"status": done.stderr.strip().splitlines()[-1]}
        report = json.loads(done.stdout)
        return {
            "status": "ok",
            **{key: report[key] for key in ("ratio", "before", "after", "verification")},
            "frozen": report["frozen"]["by_type"],
            "transposes": [_transposes(each) for each in (path, target)],
        }


def _transposes(path: Path) -> int:
    model = onnx.load(path, load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)["Transpose"]


def run(folder: Path, results: Path, names: list[str]) -> None:
    """Prune each network that isn't in the results, or is named."""
    done = read(results)
    for name, export in read(folder / "exports.jsonl").items():
        if name in done and name not in names:
            continue
        record = dict(export)
        if export["status"] == "ok":
            record |= prune(folder / f"{name}.onnx")
        with results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(name, record["status"], flush=True)


def render(results: Path) -> None:
    """Put the table into the page, between its marks."""
    rows = "".join(_row(record) for record in read(results).values())
    before, rest = PAGE.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text(f"{before}{MARKS[0]}\n{HEAD}{rows}\n{MARKS[1]}{after}")


def _row(record: Record) -> str:
    exporter = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    start = f"| {record['name']} | {exporter} |"
    if record["status"] != "ok":
        why = ": ".join(filter(None, (record["status"], record.get("reason"))))
        return f"{start} {why} | | | | |\n"
    ratio, (first, last) = record["ratio"], record["transposes"]
    frozen = ", ".join(f"{key} ({value})" for key, value in record["frozen"].items())
    shares = " | ".join(f"{ratio[key]:.3f}" for key in ("flops", "params", "bytes"))
    return f"{start} {shares} | {first} → {last} | {frozen} |\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["run", "render"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--again", nargs="*", default=[], help="networks to prune once more")
    arguments = parser.parse_args()
    if arguments.what == "render":
        return render(arguments.results)
    if arguments.folder is None:
        parser.error("run needs the folder that the export scripts wrote to")
    return run(arguments.folder, arguments.results, arguments.again)


if __name__ == "__main__":
    main()
