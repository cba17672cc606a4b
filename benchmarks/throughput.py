"""Throughput of PyTorch modules, dense and pruned: eager, compiled, in bfloat16.

    pip install '.[torch]' torchvision
    python -m benchmarks.throughput [NETWORK...] [--device cuda] [--batch 32] [--size 224]
        [--flops 0.5] [--seconds 5]

Prints a table: samples per second of the dense network, and how many times that of the pruned one,
with channel counts rounded as by default (`auto`) and to the channel (`1`), with 95% intervals. The
modules of a row run in turn (`spa_graph.torch.benchmark`); a row whose way the device can't go says
why. Weights are random: they make no difference to time.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.results import machine, versions

NETWORKS = ("resnet50", "vit_b_16")
ROUNDED: tuple[int | None, ...] = (None, 1)
"""`round_to` of the pruned networks: by default, and to the channel."""
WAYS = (
    ("eager", "float32", False),
    ("torch.compile", "float32", True),
    ("eager", "bfloat16", False),
    ("torch.compile", "bfloat16", True),
)


def rows(network: str, given: argparse.Namespace) -> Iterator[str]:
    """The rows of one network."""
    import torch

    import spa_graph.torch as spa
    from spa_graph.errors import SpaError
    from spa_graph.models_zoo.architectures import import_torchvision

    torch.manual_seed(0)
    vision, size = import_torchvision().models, given.size
    options = {"image_size": size} if network.startswith("vit") else {}
    dense = vision.get_model(network, weights=None, **options).eval()
    example = torch.randn(2, 3, size, size)
    small = [spa.prune(dense, example, flops=given.flops, round_to=each) for each in ROUNDED]
    images = torch.randn(given.batch, 3, size, size)
    for way, kind, compiled in WAYS:
        modules = [module.to(getattr(torch, kind)) for module in (dense, *small)]
        try:
            found = spa.benchmark(
                modules, images.to(getattr(torch, kind)), compiled=compiled, device=given.device,
                seconds=given.seconds,
            )  # fmt: skip
        except SpaError as error:
            cells: Sequence[str] = (str(error),)
        else:
            cells = measured(found, given.batch)
        yield f"| {network} | {way} | {kind} | {' | '.join(cells)} |"


def measured(found: dict[str, Any], batch: int) -> list[str]:
    """Samples per second, and how many times as many."""
    dense = 1000 * batch / found["modules"][0]["median_ms"]
    gains = []
    for ratio in found["ratios"]:
        high, low = (1 / each for each in ratio["interval"])
        gains.append(f"{1 / ratio['median']:.2f} ({low:.2f} to {high:.2f})")
    return [f"{dense:.3g}", *gains]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", metavar="network", help=", ".join(NETWORKS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="of the images")
    parser.add_argument("--flops", type=float, default=0.5, help="the share that is kept")
    parser.add_argument("--seconds", type=float, default=5, help="for each row")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{machine()}; {versions()}; {given.device}, batch {given.batch}, {given.size} pixels\n")
    print("| network | way | type | dense, 1/s | pruned, rounded | pruned, to the channel |")
    print("|---|---|---|---|---|---|", flush=True)
    for network in given.networks or NETWORKS:
        for row in rows(network, given):
            print(row, flush=True)


if __name__ == "__main__":
    main()
