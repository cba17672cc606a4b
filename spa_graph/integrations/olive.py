"""A pass of Microsoft Olive: pruning as a step of its workflows, and as a thing to search over.

Olive finds passes in its package configuration; `--package-config` replaces that as a whole, so the
one to give is Olive's own with this pass added:

    python -m spa_graph.integrations.olive olive_spa.json
    olive run --config workflow.json --package-config olive_spa.json

A workflow then has a pass `{"type": "SPAPrune", "flops": 0.5, "calibrate": "samples.npz"}`. Where
Olive searches, it tries shares of the FLOPs by itself. Needs `pip install olive-ai`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam
from olive.resource_path import LocalFolder
from olive.search.search_parameter import Categorical

import spa_graph
from spa_graph.passes.importance import CRITERIA
from spa_graph.passes.options import BUDGETS, CHOICES, Options

FLOPS = (0.9, 0.8, 0.65, 0.5)
"""The shares of the FLOPs that a search tries."""
_PASSED_ON: dict[str, tuple[Any, str]] = {
    "params": (float | None, "Keep at most this share of the parameters."),
    "memory": (float | None, "Keep at most this share of the memory."),
    "latency": (float | str | None, "Keep at most this share of the latency, or a time: 12ms."),
    "ratio": (float | None, "Remove this share of channels in every group."),
    "criterion": (str | None, f"What makes channels important: {', '.join(sorted(CRITERIA))}."),
    "calibrate": (str | None, "Samples (.npz, .npy, folder, module:function) or `data-free`."),
    "samples": (int | None, "How many of them are used at most."),
    "preprocess": (str | None, "How images become inputs, such as `imagenet`."),
    "reconstruct": (str | None, f"How weights are refitted: {CHOICES['reconstruct']}."),
    "round_to": (int | None, "Kept channel counts are multiples of this."),
    "min_channels": (int, "Keep at least so many channels in every group."),
    "exclude": (list[str] | None, "Weights or operators that stay as they are; globs."),
    "exact": (bool, "Prune only channels whose removal equals zeroing their weights."),
    "scope": (list[str] | None, f"What to prune: {', '.join(CHOICES['scope'])}."),
    "seed": (int, "Of every random choice."),
    "threads": (int, "For a budget of latency: threads of a session; 0: all cores."),
}
"""Options of `spa_graph.prune` that a workflow can give; defaults are those of `Options`."""


class SPAPrune(Pass):  # type: ignore[misc]  # Olive has no types
    """Removes whole channels until a budget is met; the result is proven on random data."""

    @classmethod
    def _default_config(
        cls,
        accelerator_spec: AcceleratorSpec,  # noqa: ARG003
    ) -> dict[str, PassConfigParam]:
        fields = Options.__dataclass_fields__
        config = {
            "flops": PassConfigParam(
                type_=float,
                default_value=0.5,
                search_defaults=Categorical(list(FLOPS)),
                description="Keep at most this share of the FLOPs; another budget replaces it.",
            )
        }
        for name, (kind, description) in _PASSED_ON.items():
            default = fields[name].default
            listed = isinstance(default, tuple)
            config[name] = PassConfigParam(
                type_=kind, default_value=None if listed else default, description=description
            )
        return config

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        path = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        path.parent.mkdir(parents=True, exist_ok=True)
        spa_graph.prune(model.model_path, output=path, **_options(config))
        folder = LocalFolder({"path": path.parent})
        return ONNXModelHandler(model_path=folder, onnx_file_name=path.name)


def _options(config: Any) -> dict[str, Any]:
    """The options that were given, those that are lists as tuples."""
    given = {name: getattr(config, name) for name in _PASSED_ON}
    chosen = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }
    return chosen if chosen.keys() & set(BUDGETS) else chosen | {"flops": config.flops}


def package_config() -> dict[str, Any]:
    """Olive's own package configuration, and this pass."""
    data: dict[str, Any] = json.loads(
        Path(OlivePackageConfig.get_default_config_path()).read_text()
    )
    data["passes"]["SPAPrune"] = {
        "module_path": f"spa_graph.integrations.olive.{SPAPrune.__name__}",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
        "supported_algorithms": [],
        "supported_quantization_encodings": [],
    }
    return data


def main() -> None:
    """Write the package configuration to the file that is named, or print it."""
    text = json.dumps(package_config(), indent=2) + "\n"
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
