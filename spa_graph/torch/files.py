"""Saving pruned modules, and loading them into a new module of the original's class.

The file holds plain data and tensors, and is read with `weights_only=True`:

    {"format": "spa-torch/1", "plan": <the plan as JSON text>, "state": <state_dict>,
     "inputs": <what a graph was traced with, else ()>}
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spa_graph.errors import OptionError
from spa_graph.plan import Plan
from spa_graph.torch.api import apply_plan, record_of

FORMAT = "spa-torch/1"


def save(pruned: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a pruned module: its weights and its plan.

    Raises:
        OptionError: the module is no result of `prune`, `apply_plan` or `load`, or there is no such
            folder.
    """
    record = record_of(pruned)
    data = {
        "format": FORMAT,
        "plan": json.dumps(record.plan.to_json()),
        "state": pruned.state_dict(),
        "inputs": record.inputs,
    }
    draft = Path(f"{os.fspath(path)}.draft")
    if not draft.parent.is_dir():
        raise OptionError(f"cannot write {path}: {draft.parent} does not exist")
    torch.save(data, draft)
    draft.replace(path)


def load(path: str | os.PathLike[str], model: nn.Module) -> Any:
    """Read a pruned module back.

    Args:
        model: a module as it was before pruning, with any weights; it isn't changed.

    Raises:
        OptionError: the file is none of ours, or of another module.
    """
    data = _read(Path(path))
    plan = Plan.from_json(json.loads(data["plan"]))
    if data["inputs"]:
        args, kwargs = data["inputs"]
        small = apply_plan(model, plan, (args, kwargs), return_type="graph")
    else:
        small = apply_plan(model, plan)
    try:
        small.load_state_dict(data["state"])
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise OptionError(f"{path} is of another module: {text[:300]}") from error
    return small


def _read(path: Path) -> dict[str, Any]:
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # torch raises many kinds for files that are none of its
        raise OptionError(f"{path} is no file of torch.save: {type(error).__name__}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise OptionError(f"{path} is no pruned module: it must have format {FORMAT!r}")
    return data
