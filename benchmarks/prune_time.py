"""How long pruning takes and how much memory it needs, side by side in one run -> docs/speed.md.

    pip install -e . 'spa-prune[torch]' torchvision torch-pruning psutil
    python benchmarks/prune_time.py FOLDER [--sections analysis whole memory big editing] [--print]

FOLDER holds the exported networks (made at the first run) and, for a while, a synthetic network and
its results, up to 9 GB. Every measurement is a process of its own, see `prune_time_workers.py`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "speed.md"
WORKERS = Path(__file__).with_name("prune_time_workers.py")
NETWORKS = ("resnet50", "densenet201", "vit_b_16", "swin_t")
RESOLUTION = 224
EXPORTERS = ("dynamo", "torchscript")
PACKAGES = ("spa-prune", "onnx", "onnx-ir", "onnx-graphsurgeon", "onnxruntime", "numpy", "scipy",
            "torch", "torchvision", "torch-pruning")  # fmt: skip
PROCESSES = 5  # of which a median is taken
TIME_LIMIT, MEMORY_LIMIT = 300.0, 12.0  # seconds, GiB: what a peer may use
GIB = 2**30


# --- one process per measurement -------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What a worker said, and the largest memory it was seen to use, in bytes.

    Attributes:
        resident: VmHWM, all pages that were in memory at once.
        anonymous: RssAnon, without those that are backed by files.
        failure: why it was stopped, or empty.
        seconds: how long it ran.
    """

    said: dict[str, Any]
    resident: int
    anonymous: int
    failure: str = ""
    seconds: float = 0.0


def measure(*arguments: object, limited: bool = False) -> Measured:
    """Run a worker and watch its memory.

    Raises:
        RuntimeError: it failed by itself.
    """
    command = [sys.executable, str(WORKERS), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    start, resident, anonymous, failure = time.monotonic(), 0, 0, ""
    while process.poll() is None:
        status = _status(process.pid)
        resident = max(resident, status.get("VmHWM", 0))
        anonymous = max(anonymous, status.get("RssAnon", 0))
        if limited and time.monotonic() - start > TIME_LIMIT:
            failure = f"more than {TIME_LIMIT:.0f} s"
        elif limited and anonymous > MEMORY_LIMIT * GIB:
            failure = f"more than {MEMORY_LIMIT:.0f} GiB after {time.monotonic() - start:.0f} s"
        if failure:
            process.kill()
            break
        time.sleep(0.002)
    output, _ = process.communicate()
    if process.returncode and not failure:
        raise RuntimeError(f"{' '.join(command)} failed with {process.returncode}")
    lines = output.strip().splitlines()
    said = json.loads(lines[-1]) if lines else {}
    return Measured(said, resident, anonymous, failure, time.monotonic() - start)


def _status(pid: int) -> dict[str, int]:
    """VmHWM and RssAnon in bytes; empty if the process has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (OSError, ProcessLookupError):
        return {}
    wanted = (line.split() for line in lines if line.startswith(("VmHWM:", "RssAnon:")))
    return {words[0][:-1]: 1024 * int(words[1]) for words in wanted}


def exported(name: str, exporter: str, size: int, folder: Path) -> Path:
    """The path of a network of the zoo as ONNX."""
    return Path(measure("export", name, exporter, size, folder).said["path"])


# --- sections --------------------------------------------------------------------------------


def analysis(folder: Path) -> Iterator[str]:
    """Our analysis next to Torch-Pruning's."""
    yield "## Analysis"
    yield (
        "Seconds of our rules + solve, and of Torch-Pruning's `DependencyGraph().build_dependency` "
        f"+ `get_all_groups`, for one {RESOLUTION} x {RESOLUTION} image: the first call in a fresh "
        f"process, which is what a user waits for (median of {PROCESSES} processes, taken in turn; "
        "one of a peer that takes long), and in brackets the best of 15 in each (of what fits in "
        "30 s, if fewer). Its time includes running the network, which it has to (last column: a "
        "forward pass alone); ours includes no shape inference, which is the column before. "
        f"Limits of a peer: {TIME_LIMIT:.0f} s, {MEMORY_LIMIT:.0f} GiB."
    )
    yield (
        "| network | exporter | operators | groups | read + shapes | **rules + solve** "
        "| Torch-Pruning | times faster | forward pass |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name in NETWORKS:
        paths = {exporter: exported(name, exporter, RESOLUTION, folder) for exporter in EXPORTERS}
        own: dict[str, list[dict[str, Any]]] = {exporter: [] for exporter in EXPORTERS}
        peer: list[dict[str, Any]] = []
        failure = ""
        for turn in range(PROCESSES):
            if turn == 0 or peer[0]["first"] < 1:
                found = measure("torch_pruning", name, RESOLUTION, limited=True)
                failure = "" if "first" in found.said else found.failure
                peer.append(found.said or {"first": found.seconds})
            for exporter, path in paths.items():
                own[exporter].append(measure("analysis", path).said)
        for exporter, runs in own.items():
            yield _analysis_row(name, exporter, runs, peer, failure)


def _analysis_row(
    name: str, exporter: str, runs: list[dict[str, Any]], peer: list[dict[str, Any]], failure: str
) -> str:
    own, (first, least) = runs[0], _seconds(runs)
    theirs = _seconds(peer)
    shown = failure or f"{theirs[0]:.2f} ({theirs[1]:.2f})"
    more = "> " if failure else ""
    factor = f"{more}{theirs[0] / first:.0f} ({theirs[1] / least:.0f})"
    forward = f"{min(run['forward'] for run in peer):.2f}" if "forward" in peer[0] else ""
    return (
        f"| {name} | {exporter} | {own['operators']} | {own['groups']} | {own['read']:.3f} "
        f"| **{first:.4f}** ({least:.4f}) | {shown} | {factor} | {forward} |"
    )


def _seconds(runs: list[dict[str, Any]]) -> tuple[float, float]:
    """The median of the first calls in all processes, and the best of all calls."""
    least = (run.get("analyze", run["first"]) for run in runs)
    return statistics.median(run["first"] for run in runs), min(least)


def whole(folder: Path) -> Iterator[str]:
    """Whole runs next to copying the file with onnx."""
    yield "## Whole runs"
    yield (
        "`spa_graph.prune(path, flops=0.5, output=..., verify=False)` next to `onnx.load` + "
        "`onnx.save` of the same file: seconds in fresh processes, imports apart, median (best) of "
        "seven, taken in turn."
    )
    yield "| network | file, MB | prune | load + save | ratio of medians |\n|---|---|---|---|---|"
    for name in ("resnet50", "densenet201", "swin_t", "vgg16_bn"):
        path = exported(name, "dynamo", RESOLUTION, folder)
        own, peer = [], []
        for _ in range(7):
            own.append(measure("prune", path, folder / "out.onnx", "no").said["seconds"])
            peer.append(measure("copy", path, folder / "out.onnx").said["seconds"])
        ratio = statistics.median(own) / statistics.median(peer)
        size = path.stat().st_size / 1e6
        yield f"| {name} | {size:.0f} | {_best(own)} | {_best(peer)} | {ratio:.2f} |"


def _best(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f})"


def memory(folder: Path) -> Iterator[str]:
    """Peak memory of whole runs on single-file networks."""
    yield "## Memory: weights inside the file"
    yield (
        "Peak resident memory (VmHWM, mapped pages of files included) of the whole process, in MB "
        "(10^6); allowed are the file's size and 300 MB."
    )
    yield (
        "| network | file | allowed | without verification | with verification | "
        "load + save |\n|---|---|---|---|---|---|"
    )
    for name in ("resnet50", "vgg16_bn"):
        path = exported(name, "dynamo", RESOLUTION, folder)
        size = path.stat().st_size
        used = [
            measure("prune", path, folder / "out.onnx", verify).resident
            for verify in ("no", "verify")
        ]
        used.append(measure("copy", path, folder / "out.onnx").resident)
        row = " | ".join(f"{value / 1e6:.0f}" for value in (size, size + 3e8, *used))
        yield f"| {name} | {row} |"


def big(folder: Path) -> Iterator[str]:
    """A model of 3 GiB with external data."""
    yield "## Memory: 3 GiB of external data"
    yield (
        "Fourteen convolutions of 151 MB and five linear layers of up to 268 MB, random. Anonymous "
        "memory (RssAnon) is what can't be dropped and read again; allowed is 1 GiB."
    )
    yield "| run | seconds | anonymous, MB | resident, MB |\n|---|---|---|---|"
    with _big_network(folder) as path:
        for verify, label in (("no", "prune"), ("verify", "prune and verify")):
            found = measure("prune", path, path.with_name("pruned.onnx"), verify)
            yield (
                f"| {label} | {found.said['seconds']:.1f} | {found.anonymous / 1e6:.0f} "
                f"| {found.resident / 1e6:.0f} |"
            )


def editing(folder: Path) -> Iterator[str]:
    """Load, halve every convolution, save: by four libraries."""
    yield "## Editing: load, halve every convolution, save"
    yield "| library | network | seconds | anonymous, GiB | resident, GiB |\n|---|---|---|---|---|"
    inline = exported("vgg16_bn", "dynamo", RESOLUTION, folder)
    label = f"VGG-16-BN, {inline.stat().st_size / 1e6:.0f} MB in one file"
    yield from _editing_rows(inline, label)
    with _big_network(folder) as path:
        size = Path(f"{path}.data").stat().st_size / GIB
        yield from _editing_rows(path, f"synthetic, {size:.1f} GiB of external data")


def _editing_rows(path: Path, label: str) -> Iterator[str]:
    for library in ("spa_graph", "onnx_ir", "onnx", "graphsurgeon"):
        output = path.with_name("halved.onnx")
        found = measure(f"halve_{library}", path, output)
        for written in (output, Path(f"{output}.data")):
            written.unlink(missing_ok=True)
        yield (
            f"| {library} | {label} | {found.said['seconds']:.1f} "
            f"| {found.anonymous / GIB:.2f} | {found.resident / GIB:.2f} |"
        )


# --- the synthetic network -------------------------------------------------------------------


def _layers() -> Iterator[tuple[str, list[int]]]:
    """Name and shape of every weight, in order."""
    for i in range(15):
        yield f"conv{i}.weight", [2048, 3 if i == 0 else 2048, 3, 3]
    for i, inputs in enumerate((2048, 8192, 8192, 8192, 8192, 8192)):
        yield f"linear{i}.weight", [1000 if i == 5 else 8192, inputs]


@contextmanager
def _big_network(folder: Path) -> Iterator[Path]:
    """Write the network a weight at a time; it is removed with everything beside it."""
    place = folder / f"big-{os.getpid()}"
    place.mkdir()
    try:
        path = place / "big.onnx"
        _write_big(path)
        yield path
    finally:
        for file in place.iterdir():
            file.unlink()
        place.rmdir()


def _write_big(path: Path) -> None:
    generator = np.random.default_rng(0)
    nodes, tensors, value = [], [], "input"
    with path.with_name("big.onnx.data").open("wb") as data:
        for name, shape in _layers():
            tensors.append(_external(name, shape, data.tell()))
            scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
            for _ in range(shape[0]):
                row = generator.standard_normal(shape[1:], np.float32)
                data.write((row * scale).tobytes())
            convolution = name.startswith("conv")
            if name == "linear0.weight":
                nodes.append(onnx.helper.make_node("GlobalAveragePool", [value], ["pooled"]))
                nodes.append(onnx.helper.make_node("Flatten", ["pooled"], ["flat"]))
                value = "flat"
            operator = name.removesuffix(".weight")
            settings = {"pads": [1, 1, 1, 1]} if convolution else {"transB": 1}
            kind = "Conv" if convolution else "Gemm"
            nodes.append(onnx.helper.make_node(kind, [value, name], [operator], **settings))
            nodes.append(onnx.helper.make_node("Relu", [operator], [f"{operator}.relu"]))
            value = f"{operator}.relu"
    nodes[-1].output[0] = "output"
    onnx.save(_model(nodes, tensors), path)


def _external(name: str, shape: list[int], offset: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, dims=shape, data_type=onnx.TensorProto.FLOAT)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    length = 4 * int(np.prod(shape))
    place = {"location": "big.onnx.data", "offset": offset, "length": length}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _model(nodes: list[Any], tensors: list[Any]) -> onnx.ModelProto:
    images = onnx.helper.make_tensor_value_info("input", 1, ["batch", 3, 4, 4])
    scores = onnx.helper.make_tensor_value_info("output", 1, ["batch", 1000])
    graph = onnx.helper.make_graph(nodes, "big", [images], [scores], tensors)
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )


# --- the page --------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[Path], Iterator[str]]] = {
    section.__name__: section for section in (analysis, whole, memory, big, editing)
}


def head() -> str:
    """Machine, versions and command."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    versions = ", ".join(f"{package} {_version(package)}" for package in PACKAGES)
    return (
        "# Speed and memory\n\nWritten by `python benchmarks/prune_time.py FOLDER` on "
        f"{datetime.date.today().isoformat()}: {cpu}, {os.cpu_count()} cores, {gibibytes:.0f} GiB, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"{versions}. "
        f"Load average at the start: {os.getloadavg()[0]:.1f}."
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def main() -> None:
    """Measure, print, and write docs/speed.md if all sections were asked for."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--print", action="store_true", help="print only, write no page")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    page = head()
    print(page, flush=True)
    for name in arguments.sections:
        parts = []
        for part in SECTIONS[name](arguments.folder):
            print(part, flush=True)
            parts.append(part)
        page += _joined(parts)
    if not arguments.print and arguments.sections == list(SECTIONS):
        PAGE.write_text(page + "\n", encoding="utf-8")


def _joined(parts: list[str]) -> str:
    """Paragraphs apart, rows of a table together."""
    text = ""
    for part in parts:
        row = part.startswith("|") and text.rsplit("\n", 1)[-1].startswith("|")
        text += ("\n" if row else "\n\n") + part
    return text


if __name__ == "__main__":
    main()
