"""Large networks from torch, by every exporter that works; run with `pytest -m matrix`.

Networks are exported once per run. SPA_MODELS names a folder in which they stay for the next.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from spa_graph import analyze
from spa_graph.models_zoo.architectures import ARCHITECTURES, Exporter, export
from tests.architectures.checks import check_network, group_sizes
from tests.architectures.recount import shared_vectors

pytestmark = pytest.mark.matrix

EXPORTS = [(name, exporter) for name, a in ARCHITECTURES.items() for exporter in a.exporters]
BOTH = [name for name, architecture in ARCHITECTURES.items() if len(architecture.exporters) == 2]
# Equal initializers of unrelated layers are one in these files.
MERGED = ("vgg19_bn", "efficientnet_b0", "mobilenet_v3_large", "squeezenet1_1", "swin_t")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where exported networks are."""
    kept = os.environ.get("SPA_MODELS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("models")
    yield folder
    if not kept:
        shutil.rmtree(folder)


@pytest.mark.parametrize(("name", "exporter"), EXPORTS)
def test_prunes_to_half(name: str, exporter: Exporter, models: Path, tmp_path: Path) -> None:
    path = export(name, models, exporter)
    if name in MERGED and exporter == "torchscript":
        assert shared_vectors(path)
    pruned = tmp_path / "pruned.onnx"
    check_network(path, pruned)
    pruned.unlink()


@pytest.mark.parametrize("name", BOTH)
def test_exporters_reach_the_same_groups(name: str, models: Path) -> None:
    dynamo, torchscript = (
        group_sizes(analyze(export(name, models, exporter)))
        for exporter in ("dynamo", "torchscript")
    )
    assert dynamo == torchscript
