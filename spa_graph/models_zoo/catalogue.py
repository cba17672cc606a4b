"""Every network of the coverage matrix: what there is, and how to build it.

A suite is a module with a function ``rows() -> Iterable[Entry]``. Listing may import the suite's
library (torchvision, timm, transformers); only building a row makes a network. Nothing is
downloaded: weights are random, under a fixed seed, see `architectures.settle`.

    python -m spa_graph.models_zoo.catalogue [SUITE...]        # lists suite/name, one a line
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from spa_graph.models_zoo.architectures import BATCH, OPSET, SEED, Built, Exporter, settle

SUITES = {
    "torchvision": "spa_graph.models_zoo.torchvision_networks",
    "timm": "spa_graph.models_zoo.timm_networks",
    "transformers": "spa_graph.models_zoo.transformer_networks",
    "own": "spa_graph.models_zoo.own_networks",
    "onnx": "spa_graph.models_zoo.onnx_networks",
}


@dataclass(frozen=True)
class Entry:
    """One row: a torch network that can be built and exported, or an ONNX file.

    Attributes:
        builder: returns (module, example inputs, input names). Its inputs have a batch that is
            large enough for BatchNorm statistics (`architectures.SETTLE_BATCH`); `build` cuts it.
        source: returns an ONNX file instead; one of the two is given.
        exporters: in order of preference. TorchScript is several times as quick, and its graphs are
            the harder ones: sizes are computed in the graph, equal weights are merged.
        dynamic_batch: whether to export with a free batch axis; where that fails, the runner falls
            back to a fixed one by itself.
        batch_first: whether axis 0 of every input is the batch; if not, inputs stay as they are.
        data_dependent: whether axis 0 of outputs is a number of things found, as a detector's is.
        settled: whether `build` draws the weights anew; False for builders that do it themselves.
        weight: how long it takes, roughly, in units of a ResNet-50: heavy rows start first, and
            their limits are longer.
        note: what a reader of the table should know.
    """

    suite: str
    name: str
    builder: Callable[[], Built] | None = None
    source: Callable[[], Path] | None = None
    exporters: tuple[Exporter, ...] = ("torchscript", "dynamo")
    opset: int = OPSET
    dynamic_batch: bool = True
    batch_first: bool = True
    data_dependent: bool = False
    settled: bool = True
    weight: float = 1.0
    note: str = ""

    def __post_init__(self) -> None:
        if (self.builder is None) == (self.source is None):
            raise ValueError(f"{self.key}: give a builder or a source, one of them")

    @property
    def key(self) -> str:
        """What names a row everywhere: ``suite/name``."""
        return f"{self.suite}/{self.name}"

    def build(self) -> Built:
        """Return (module in eval mode, example inputs of batch 2, input names), always the same."""
        import torch

        assert self.builder is not None, f"{self.key} is a file"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            module, inputs, names = self.builder()
            module.eval()
            if self.settled:
                settle(module, inputs)
        return module, tuple(x[:BATCH] if self.batch_first else x for x in inputs), names


def entries(suites: Iterable[str] | None = None, pattern: str = "*") -> list[Entry]:
    """Return the rows of some suites (default: all) whose name or key matches a glob.

    Raises:
        ImportError: the library of a suite isn't installed.
        KeyError: there is no such suite.
    """
    found: list[Entry] = []
    for suite in suites if suites is not None else SUITES:
        found += importlib.import_module(SUITES[suite]).rows()
    keys = [row.key for row in found]
    twice = {key for key in keys if keys.count(key) > 1}
    assert not twice, f"two rows of one name: {sorted(twice)}"
    return [r for r in found if fnmatchcase(r.name, pattern) or fnmatchcase(r.key, pattern)]


def entry(key: str) -> Entry:
    """Return the row that ``suite/name`` stands for."""
    suite, _, name = key.partition("/")
    for row in entries([suite]):
        if row.name == name:
            return row
    raise KeyError(f"no row `{name}` in suite `{suite}`")


def main() -> None:
    """List the rows."""
    for row in entries(sys.argv[1:] or None):
        print(row.key)


if __name__ == "__main__":
    main()
