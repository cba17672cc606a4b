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
_THREADS = {f"OpenVINO{_SUFFIX}": "num_of_threads"}
"""What providers call the number of threads that don't take the session's."""


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


def own_options(provider: str, threads: int) -> dict[str, str]:
    """The provider's own options for a session with so many threads."""
    return {_THREADS[provider]: str(threads)} if provider in _THREADS else {}
