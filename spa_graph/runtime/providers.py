"""Execution providers of ONNX Runtime, by the short names that people use."""

from __future__ import annotations

import onnxruntime as ort

from spa_graph.errors import OptionError

CPU = "CPUExecutionProvider"
_SUFFIX = "ExecutionProvider"
_ALIASES = {"directml": "dml"}
_PACKAGES = {
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu",
    "dml": "onnxruntime-directml",
    "openvino": "onnxruntime-openvino",
    "coreml": "onnxruntime on macOS",
}
"""Where providers come from that the plain package lacks."""


def provider_named(name: str) -> str:
    """`cuda` -> `CUDAExecutionProvider`, if the installed onnxruntime has it.

    Raises:
        OptionError: it hasn't; the text names those that it has.
    """
    short = name.removesuffix(_SUFFIX).lower()
    short = _ALIASES.get(short, short)
    there = {each.removesuffix(_SUFFIX).lower(): each for each in ort.get_available_providers()}
    if short in there:
        return there[short]
    package = _PACKAGES.get(short)
    fix = f"; it comes with {package}" if package else ""
    raise OptionError(
        f"--provider {name}: the installed onnxruntime {ort.__version__} has no such provider, "
        f"only {', '.join(sorted(there))}{fix}"
    )
