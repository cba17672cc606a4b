"""What pruning by the command makes of one file, and how fast that is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from spa_graph.studies.bench import bench

Record = dict[str, Any]
LEVELS = {
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


class PruningError(RuntimeError):
    """The command failed; the text is the last line that it printed."""


def prune(path: Path, target: Path, *options: str) -> Record:
    """Run the command in a process of its own.

    Returns:
        Its report.

    Raises:
        PruningError: it failed.
    """
    line = [sys.executable, "-m", "spa_graph", "prune", str(path), "-o", str(target), "--overwrite"]
    line += ["--latency-seconds", "0", "--json", *options]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise PruningError((done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1])
    return json.loads(done.stdout)


def transposes(path: Path) -> int:
    """How many Transposes a file has, in its functions and branches too."""
    model = onnx.load(path, load_external_data=False)
    return sum(map(_transposes, (model.graph, *model.functions)))


def _transposes(graph: onnx.GraphProto | onnx.FunctionProto) -> int:
    inner = (each.g for node in graph.node for each in node.attribute if each.HasField("g"))
    return sum(node.op_type == "Transpose" for node in graph.node) + sum(map(_transposes, inner))


def transposes_run(path: Path) -> dict[str, int]:
    """How many ONNX Runtime leaves there, by the level of its optimiser."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for name, level in LEVELS.items():
            written = Path(folder) / f"{name}.onnx"
            options = ort.SessionOptions()
            options.graph_optimization_level = level
            options.optimized_model_filepath = str(written)
            options.log_severity_level = 4  # that such a file depends on the machine is known
            ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            found[name] = transposes(written)
    return found


def latency(dense: Path, pruned: Path, seconds: float) -> Record:
    """Both in turn on one thread: the ratio of medians, its interval, and the machine's load."""
    load = os.getloadavg()[0]
    found = bench([dense, pruned], threads=1, seconds=seconds)
    medians = [each["median_ms"] for each in found["models"]]
    return {**found["ratios"][0], "ms": medians, "load": load, "machine": found["machine"]}
