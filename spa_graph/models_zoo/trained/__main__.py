"""Write the trained networks to a folder, and score them on request."""

from __future__ import annotations

import argparse
import sys
import time

from spa_graph.models_zoo.trained import NETWORKS, MissingRequirementError


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m spa_graph.models_zoo.trained", description=__doc__
    )
    parser.add_argument("folder", help="where the ONNX files go; files that are there stay")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="name",
        help=f"which networks (default: all): {', '.join(NETWORKS)}",
    )
    parser.add_argument("--evaluate", action="store_true", help="score each and print a table")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(NETWORKS)
    if unknown:
        parser.error(f"no such network: {', '.join(sorted(unknown))}")
    return arguments


def _report(name: str, folder: str, evaluate: bool) -> str:
    """Fetch one network and return its line of the table."""
    network = NETWORKS[name]
    path = network.fetch(folder)
    line = f"{name:20} {path.stat().st_size / 1e6:7.1f} MB  {network.licence:10}"
    if not evaluate:
        return f"{line}  {path}"
    start = time.perf_counter()
    score = network.evaluate(path)
    seconds = time.perf_counter() - start
    return f"{line}  {network.metric:16} {score[network.metric]:.4f}  {seconds:6.1f} s"


def main() -> int:
    """Return 1 if a network is missing its package, else 0."""
    arguments = _parse()
    failed = False
    for name in arguments.names or NETWORKS:
        try:
            print(_report(name, arguments.folder, arguments.evaluate), flush=True)
        except MissingRequirementError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
