"""What `coverage.py` measures, each in a process of its own: one function per column.

    python -m benchmarks.coverage_workers COLUMN ROW FOLDER RESULT SECONDS [CORE...]

writes JSON to the file RESULT, also while it works, so that a process that has to be killed leaves
what it knew. SECONDS is what it has; FOLDER holds the exported network of the row.

Statuses: see `coverage.STATUSES`. An exception that nobody expected ends the process; the parent
makes a row of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Found = dict[str, Any]

MODEL = "model.onnx"  # `coverage.EXPORTED`
INPUTS, PRUNED = "inputs.npz", "pruned.{}.onnx"
SPARSITY = 0.3  # what a peer that counts channels has to remove for half of the FLOPs: 0.7^2
LATENCY = 0.4  # seconds


def main() -> None:
    """Run one column."""
    column, key, folder, result, seconds, *cores = sys.argv[1:]
    if cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {int(core) for core in cores})
    warnings.simplefilter("ignore")
    report = Report(Path(result))
    report.update(COLUMNS[column](key, Path(folder), float(seconds), report.update))
    sys.stdout.flush()
    os._exit(0)  # libraries that crash while they are torn down don't count


class Report:
    """What is known so far, in a file that is always whole."""

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, Found()

    def update(self, found: Found) -> None:
        self.found |= found
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.found))
        partial.replace(self.path)


Update = Callable[[Found], None]


# --- export ----------------------------------------------------------------------------------


def export(key: str, folder: Path, seconds: float, update: Update) -> Found:
    """Export a network by the first exporter whose file ONNX Runtime runs; or take a file."""
    import shutil

    from spa_graph.models_zoo import catalogue

    row = catalogue.entry(key)
    if row.source is not None:
        shutil.copyfile(row.source(), folder / MODEL)
        _save_inputs(folder, {})
        return _exported(folder, {"exporter": "file", "note": row.note})
    try:
        built = row.build()
    except Exception as error:
        return {"status": "skipped", "reason": f"can't be built here: {short(error)}"}
    attempts = [
        (exporter, dynamic)
        for exporter in row.exporters
        for dynamic in ([True, False] if row.dynamic_batch else [False])
    ]
    failed: dict[str, str] = {}
    end = time.monotonic() + seconds
    for number, (exporter, dynamic) in enumerate(attempts):
        label = exporter + (", dynamic batch" if dynamic else "")
        left = max(end - time.monotonic(), 1.0)
        share = left / 2 if number < len(attempts) - 1 else left
        try:
            with time_limit(share):
                _write(built, folder, row.opset, exporter, dynamic)
            return _exported(folder, {"exporter": label, "failed": failed, "note": row.note})
        except (Exception, OutOfTime) as error:
            failed[label] = short(error)
        update({"failed": failed})
    reason = "; ".join(f"{label}: {why}" for label, why in failed.items())
    return {"status": "not exportable", "reason": reason}


def _write(built: Any, folder: Path, opset: int, exporter: Any, dynamic: bool) -> None:
    """Export, and see that the file runs on the example inputs."""
    from spa_graph.models_zoo.architectures import write

    for old in folder.glob("model.*"):
        old.unlink()
    write(built, folder / MODEL, exporter, opset, dynamic, True)
    _, inputs, names = built
    _save_inputs(folder, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
    run(folder / MODEL, load_inputs(folder))


def _exported(folder: Path, found: Found) -> Found:
    import onnx

    from spa_graph.frontends.onnx import files

    path = folder / MODEL
    opset = onnx.load(path, load_external_data=False).opset_import
    size = sum(file.stat().st_size for file in files.sources(files.load(path)))
    versions = {entry.domain or "ai.onnx": entry.version for entry in opset}
    return {"status": "ok", "opset": versions["ai.onnx"], "bytes": size, **found}


def _save_inputs(folder: Path, arrays: dict[str, Any]) -> None:
    """The example inputs that the file really has; random ones where there are none."""
    import numpy as np

    from spa_graph import analyze
    from spa_graph.runtime.inputs import random_inputs

    if arrays:
        wanted = {value.name for value in open_session(folder / MODEL).get_inputs()}
        arrays = {name: array for name, array in arrays.items() if name in wanted}
    else:
        arrays = dict(random_inputs(analyze(folder / MODEL).graph))
    np.savez(folder / INPUTS, **arrays)


class OutOfTime(BaseException):
    """Not an Exception: an exporter that tries several ways would go on with the next."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime after some time, at the next Python instruction."""
    import signal

    def stop(*_: object) -> None:
        raise OutOfTime(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5.0)  # again, should somebody catch it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- ours ------------------------------------------------------------------------------------


def ours(key: str, folder: Path, seconds: float, update: Update) -> Found:  # noqa: ARG001
    """`spa_graph.analyze`, then `spa_graph.prune(flops=0.5)`, both without any hint.

    Times are the process's own, as other jobs run at the same time.
    """
    import onnxruntime  # noqa: F401

    import spa_graph
    from spa_graph.passes.report import inspection
    from spa_graph.runtime.benchmark.memory import Meter

    path = folder / MODEL
    memory = Meter()
    start = time.process_time()
    try:
        analysis = spa_graph.analyze(path)
    except spa_graph.errors.SpaError as error:
        return {"status": "refused", "reason": short(error)}
    took = time.process_time() - start
    used = memory.used()
    known = inspection(analysis)
    before = known["flops"]
    update(
        {
            "analysis_seconds": took,
            "analysis_memory": used,
            "nodes": known["model"]["operators"],
            "groups": len(known["groups"]),
            "channels": known["channels"],
            "flops": before,
            "params": known["params"],
            "prunable": prunable_share(analysis),
            "smallest": known["smallest_flops_ratio"],
            "smallest_params": known["smallest_params_ratio"],
            "frozen": known["frozen"]["by_type"],
            "reasons": reasons(known["frozen"]),
        }
    )
    del analysis
    return _pruned(folder, known["smallest_flops_ratio"], before, update)


def _pruned(folder: Path, smallest: float, before: float, update: Update) -> Found:
    """Prune to half of the FLOPs, or to what can be reached."""
    import spa_graph
    from spa_graph.runtime import benchmark
    from spa_graph.runtime.benchmark.memory import Meter, peak_memory

    path, output = folder / MODEL, folder / PRUNED.format("ours")
    memory, target = Meter(), 0.5
    start = time.process_time()
    result, reason = None, ""
    for target in (0.5, *floors(smallest)):
        try:
            start = time.process_time()
            result = spa_graph.prune(path, flops=target, output=output)
            break
        except spa_graph.BudgetError as error:
            reason = short(error)
        except spa_graph.ModelError as error:
            nothing = "no prunable channel" in str(error)
            status = "nothing" if nothing else "refused"
            return {"status": status, "reason": short(error)}
        except spa_graph.errors.SpaError as error:
            return {"status": "refused", "reason": short(error)}
    if result is None:
        return {"status": "nothing", "reason": reason}
    proof = result.report["verification"]
    update(
        {
            "status": "ok" if target == 0.5 else "floor",
            "reason": reason,
            "seconds": time.process_time() - start,
            "steps": result.report["seconds"],
            "memory": memory.used(),
            "asked": target,
            "ratio": flops(output) / before if before else 1.0,
            "params_ratio": result.report["ratio"]["params"],
            "error": proof["error"],
            "tolerated": proof["tolerated"],
            "varied": proof["output_varied"],
            "canonicalized": len(result.report["canonicalized"]),
        }
    )
    broken = judge(path, output, load_inputs(folder))
    if broken:
        return {"status": "broken", "reason": broken, "valid": False}
    update({"valid": True, "session_memory": peak_memory(path, load_inputs(folder))})
    try:
        latency = benchmark.measure(path, output, load_inputs(folder), seconds=LATENCY)
    except spa_graph.errors.SpaError as error:
        return {"latency_reason": short(error)}
    return {"latency": latency.after / latency.before, "latency_ms": latency.before}


def floors(smallest: float) -> list[float]:
    """Budgets above the smallest that can be reached; copies of shared weights may need more."""
    return [t for factor in (1.01, 1.05, 1.2) if (t := smallest * factor + 0.002) < 1]


def prunable_share(analysis: Any) -> float:
    """The share of the weights' elements that some group can remove, along any axis."""
    from spa_graph.passes.cost import counts_as_weight

    graph = analysis.graph
    free: dict[str, dict[int, float]] = {}
    for group in analysis.groups:
        for member in group.members if group.size > 1 else ():
            axes = free.setdefault(member.parameter, {})
            size = graph.parameters[member.parameter].shape[member.axis]
            share = axes.get(member.axis, 0.0) + member.index.size / size
            axes[member.axis] = min(share, 1.0)
    whole = prunable = 0.0
    for name, parameter in graph.parameters.items():
        if not counts_as_weight(parameter):
            continue
        elements = 1.0
        for size in parameter.shape:
            elements *= size
        fixed = 1.0
        for share in free.get(name, {}).values():
            fixed *= 1 - share
        whole += elements
        prunable += elements * (1 - fixed)
    return prunable / whole if whole else 0.0


def reasons(frozen: Found) -> dict[str, Any]:
    """How often each reason freezes operators and weight axes, names left out."""
    operators = Counter(f"{o['type']}: {general(o['reason'])}" for o in frozen["operators"])
    axes = Counter(general(reason) for reason in frozen["parameters"].values())
    return {"operators": dict(operators.most_common(12)), "axes": dict(axes.most_common(12))}


def general(reason: str) -> str:
    """A reason without the names and numbers of one network."""
    import re

    reason = re.sub(r"`[^`]*`", "`…`", reason)
    return re.sub(r"\d+", "N", reason)[:200]


# --- peers -----------------------------------------------------------------------------------


def torch_pruning(key: str, folder: Path, seconds: float, update: Update) -> Found:  # noqa: ARG001
    """Torch-Pruning as its README shows it: one pruner, one ratio, the last layers ignored."""
    import torch
    import torch_pruning as tp

    from spa_graph.models_zoo import catalogue

    row = catalogue.entry(key)
    if row.builder is None:
        return {"status": "not applicable", "reason": "there is no torch network"}
    try:
        module, inputs, _ = row.build()
    except Exception as error:
        return {"status": "skipped", "reason": f"can't be built here: {short(error)}"}
    with torch.no_grad():
        before = shapes(module(*inputs))
    flops, params = tp.utils.count_ops_and_params(module, inputs)
    start = time.perf_counter()
    pruner = tp.pruner.BasePruner(
        module,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=SPARSITY,
        ignored_layers=last_layers(module, inputs),
    )
    pruner.step()
    update({"seconds": time.perf_counter() - start})
    try:
        with torch.no_grad():
            after = shapes(module(*inputs))
    except Exception as error:
        return {"status": "broken", "reason": short(error)}
    flops_after, params_after = tp.utils.count_ops_and_params(module, inputs)
    found = {"ratio": flops_after / flops if flops else 1.0, "params_ratio": params_after / params}
    first = 1 if row.data_dependent else 0
    if [shape[first:] for shape in after] != [shape[first:] for shape in before]:
        return {"status": "broken", "reason": f"outputs {after} instead of {before}", **found}
    return {"status": "ok" if params_after < params else "nothing", **found}


def last_layers(module: Any, inputs: Any) -> list[Any]:
    """Layers whose output is an output of the network, with no other layer in between.

    A user who ignores nothing loses classes; that would break every network.
    """
    import torch
    from torch import nn

    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase)
    made: dict[Any, Any] = {}

    def remember(layer: Any, _: Any, output: Any) -> None:
        for tensor in tensors(output):
            if tensor.grad_fn is not None:
                made[tensor.grad_fn] = layer

    hooks = [m.register_forward_hook(remember) for m in module.modules() if isinstance(m, kinds)]
    with torch.enable_grad():
        waiting = [tensor.grad_fn for tensor in tensors(module(*inputs))]
    for hook in hooks:
        hook.remove()
    found, seen = [], set()
    while waiting:
        step = waiting.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if step in made:
            found.append(made[step])
        else:
            waiting += [before for before, _ in step.next_functions]
    return list(dict.fromkeys(found))


def tensors(output: Any) -> list[Any]:
    """All tensors in nested outputs."""
    import torch

    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        output = output.values()
    elif not isinstance(output, list | tuple):
        return []
    return [tensor for part in output for tensor in tensors(part)]


def shapes(output: Any) -> list[list[int]]:
    """The shapes of all outputs."""
    return [list(tensor.shape) for tensor in tensors(output)]


def onnxsim(key: str, folder: Path, seconds: float, update: Update) -> Found:  # noqa: ARG001
    """onnxsim's structured pruning, then its pruning of attention heads, both by default."""
    import onnx
    import onnxsim as peer

    path, output = folder / MODEL, folder / PRUNED.format("onnxsim")
    start = time.perf_counter()
    model = peer.apply_structured_pruning(str(path))
    update({"seconds": time.perf_counter() - start})
    model = peer.apply_attention_head_pruning(model)
    update({"seconds": time.perf_counter() - start})
    before, after = stored(onnx.load(path)), stored(model)
    if before == after:
        return {"status": "nothing", "ratio": 1.0, "params_ratio": 1.0}
    update({"params_ratio": after / before})
    large = after > 1.8e9
    onnx.save(model, output, save_as_external_data=large, location=f"{output.name}.data")
    broken = judge(path, output, load_inputs(folder))
    if broken:
        return {"status": "broken", "reason": broken}
    return {"status": "ok", "ratio": flops(output) / flops(path)}


def stored(model: Any) -> int:
    """Bytes of all weights."""
    import onnx

    types = onnx.helper.tensor_dtype_to_np_dtype
    total = 0
    for tensor in model.graph.initializer:
        elements = 1
        for size in tensor.dims:
            elements *= size
        total += elements * types(tensor.data_type).itemsize
    return total


# --- common ----------------------------------------------------------------------------------


def judge(original: Path, pruned: Path, feeds: Found) -> str:
    """Why a pruned file is broken, or nothing: checked, loaded, run, and its outputs' shapes."""
    import onnx

    try:
        onnx.checker.check_model(str(pruned))
        got = run(pruned, feeds)
    except Exception as error:
        return short(error)
    want = run(original, feeds)
    if [x.shape for x in got] != [x.shape for x in want] and not depends_on_data(original):
        return f"outputs {[x.shape for x in got]} instead of {[x.shape for x in want]}"
    return ""


def depends_on_data(path: Path) -> bool:
    """Whether the sizes of outputs depend on values, as a detector's do."""
    import onnx

    selecting = {"NonMaxSuppression", "NonZero", "Unique", "Compress"}
    graph = onnx.load(path, load_external_data=False).graph
    return any(node.op_type in selecting for node in graph.node)


def run(path: Path, feeds: Found) -> list[Any]:
    """All outputs, by ONNX Runtime as anyone would open it."""
    return open_session(path).run(None, feeds)


def open_session(path: Path) -> Any:
    """Open a file as anyone would."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def load_inputs(folder: Path) -> Found:
    """The example inputs that the export left."""
    import numpy as np

    with np.load(folder / INPUTS) as arrays:
        return {name: arrays[name] for name in arrays.files}


def flops(path: Path, input_shapes: Mapping[str, Sequence[int]] | None = None) -> float:
    """FLOPs of a file, for ours and peers alike."""
    from spa_graph import analyze

    cost = analyze(path, input_shapes=input_shapes or {}).cost
    return cost.cost("flops", cost.full)


def short(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, RuntimeError | ValueError) and type(error).__name__ not in text:
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 300 else f"{text[:297]}..."


COLUMNS: dict[str, Callable[[str, Path, float, Update], Found]] = {
    "export": export,
    "ours": ours,
    "torch-pruning": torch_pruning,
    "onnxsim": onnxsim,
}

if __name__ == "__main__":
    main()
