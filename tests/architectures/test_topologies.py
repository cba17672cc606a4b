"""Small networks of known topologies; needs no torch.

Golden files hold the groups of some of them, reviewed by eye. After a deliberate change:

    SPA_UPDATE_GOLDEN=1 pytest tests/architectures/test_topologies.py
"""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest

from spa_graph import analyze
from spa_graph.models_zoo.topologies import TOPOLOGIES
from tests.architectures.checks import check_network, group_sizes, group_text

GOLDEN = Path(__file__).with_name("golden")
REVIEWED = ("resnet", "densenet", "shufflenet", "vit_fused", "decoder")


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_prunes_to_half(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.onnx"
    onnx.save(TOPOLOGIES[name](), path)
    check_network(path, tmp_path / "pruned.onnx")


@pytest.mark.parametrize("name", REVIEWED)
def test_groups_are_as_reviewed(name: str) -> None:
    path = GOLDEN / f"{name}.groups.txt"
    found = group_text(analyze(TOPOLOGIES[name]()))
    if os.environ.get("SPA_UPDATE_GOLDEN"):
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")


def test_fused_and_separate_attention_agree() -> None:
    fused, separate = (analyze(TOPOLOGIES[f"vit_{kind}"]()) for kind in ("fused", "separate"))
    assert group_sizes(fused) == group_sizes(separate)
