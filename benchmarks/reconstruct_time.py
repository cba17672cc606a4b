"""Seconds of the reconstruction alone, and the peak memory of all that comes before and of itself.

    OMP_NUM_THREADS=2 python -m benchmarks.reconstruct_time FILE.onnx [--samples 256] [--flops 0.5]

The inputs are normal random numbers, and groups are ranked globally: neither matters to the time.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from spa_graph.frontends.onnx import forms
from spa_graph.passes.calibrated import calibrate
from spa_graph.passes.network import prepare, rewrite
from spa_graph.passes.options import Options, Timer
from spa_graph.passes.pipeline import choose, rank
from spa_graph.passes.reconstruct import Reconstruction, reconstruct


def peak() -> float:
    """The most memory of this process so far, in GiB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(path: Path, samples: int, flops: float) -> tuple[Reconstruction, float, float]:
    """What became of the network, seconds, and GiB at their peak before the reconstruction."""
    model = forms.take(str(path))[0]
    analysis = prepare(model, Options(flops=flops), Timer())
    name = next(iter(analysis.graph.inputs))
    shape = (samples, *analysis.graph.samples[0][name][1:])
    arrays = {name: np.random.default_rng(0).standard_normal(shape, np.float32)}
    options = Options(flops=flops, calibrate=arrays, samples=samples, allocation="global")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        calibrated = calibrate(analysis, options, Timer(), place)
        kept = choose(rank(analysis, options, Timer(), calibrated), options, Timer()).kept
        pruned = rewrite(analysis, kept, options, Timer())
        before, start = peak(), time.perf_counter()
        result = reconstruct(analysis, pruned, calibrated, options, place)
        return result, time.perf_counter() - start, before


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", type=Path, metavar="FILE.onnx")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--flops", type=float, default=0.5)
    arguments = parser.parse_args()
    result, seconds, before = measure(arguments.path, arguments.samples, arguments.flops)
    print(
        f"{arguments.path.name}: {len(result.layers)} layers in {seconds:.1f} s; "
        f"peak {before:.2f} GiB before, {peak():.2f} GiB in all"
    )


if __name__ == "__main__":
    main()
