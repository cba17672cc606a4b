"""Analysis time of PyTorch modules, next to Torch-Pruning; tracing apart.

    pip install '.[torch]' torchvision torch-pruning==1.6.1
    python -m benchmarks.module_time [NETWORK...]

Prints a table: seconds of `torch.export` (tracing), of what spa-prune does after it (reading the
graph, rules and solve), and of Torch-Pruning's `build_dependency` + `get_all_groups`, which run the
network themselves; for one 224 x 224 image and one thread, the first call in a fresh process.
"""

from __future__ import annotations

import subprocess
import sys
import time
import warnings

from benchmarks.results import machine, versions

NETWORKS = ("resnet50", "densenet201", "vit_b_16")
WAYS = ("spa-prune", "torch-pruning")
SECONDS = 120


def measure(network: str, way: str) -> str:
    """The cells of a network in the table."""
    import torch

    from spa_graph.models_zoo.architectures import import_torchvision

    torch.set_num_threads(1)
    model = import_torchvision().models.get_model(network, weights=None).eval()
    return globals()[way.replace("-", "_")](model, torch.zeros(1, 3, 224, 224))


def spa_prune(model: object, image: object) -> str:
    """Seconds of tracing, and of the analysis."""
    import spa_graph.coupling.analysis
    from spa_graph.frontends.torch.calls import as_call
    from spa_graph.frontends.torch.reader import read
    from spa_graph.frontends.torch.tracing import trace

    start = time.perf_counter()
    traced = trace(model, as_call(image))  # type: ignore[arg-type]
    middle = time.perf_counter()
    graph = read(traced, "network").graph
    between = time.perf_counter()
    groups = len(spa_graph.coupling.analysis.analyze(graph).groups)
    end = time.perf_counter()
    return f"{middle - start:.2f} | {between - middle:.3f} | {end - between:.4f} | {groups}"


def torch_pruning(model: object, image: object) -> str:
    """Seconds of what finds the groups."""
    import torch_pruning as tp

    start = time.perf_counter()
    graph = tp.DependencyGraph().build_dependency(model, image)
    groups = len(list(graph.get_all_groups()))
    return f"{time.perf_counter() - start:.2f} | {groups}"


def cells(network: str, way: str) -> str:
    """Measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.module_time", "--cell", network, way]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except subprocess.TimeoutExpired:
        return f"more than {SECONDS} | "
    return ended.stdout.splitlines()[-1]


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["--cell"]:
        print(measure(*sys.argv[2:]))
        return
    print(f"{machine()}; {versions()}\n")
    print("| network | tracing | reading | rules + solve | groups | Torch-Pruning | its groups |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for network in sys.argv[1:] or NETWORKS:
        print(f"| {network} | {' | '.join(cells(network, way) for way in WAYS)} |", flush=True)


if __name__ == "__main__":
    main()
