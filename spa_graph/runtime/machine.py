"""What decides about a measurement: the machine and the versions."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxruntime as ort

PACKAGES = ("spa-prune", "onnx", "onnx-ir", "numpy", "scipy")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide about the result."""
    # the packages of onnxruntime have other names for other providers
    found = {"python": platform.python_version(), "onnxruntime": ort.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """The processor, how many of its cores may be used, and the system."""
    return {"system": platform.platform(), "processor": _processor(), "cores": cores()}


def cores() -> int:
    """How many cores this process may use.

    joblib and others tell their workers by OMP_NUM_THREADS.
    """
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(found or 1, int(told)) if told.isdecimal() and int(told) else found or 1


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
