"""ONNX Runtime sessions, opened and run with errors that people can read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from spa_graph.errors import ModelError
from spa_graph.runtime.machine import cores
from spa_graph.runtime.providers import CPU, own_options

Feeds = Mapping[str, NDArray[Any]]
Session = ort.InferenceSession
ort.set_default_logger_severity(4)  # its errors are raised too; its warnings are its own business


def open_session(
    model: Path | bytes,
    *,
    plain: bool = False,
    threads: int = 0,
    provider: str = CPU,
    profile: Path | None = None,
) -> ort.InferenceSession:
    """Open a model, on the CPU unless another provider is asked for.

    Args:
        model: a file, or its contents.
        plain: run the graph as it is written: no fusion, no folded constants, no repacked
            weights. For reference results; needs the least memory.
        threads: 0 stands for all cores that this process may use.
        provider: ONNX Runtime's name for it; what it lacks runs on the CPU.
        profile: where `end_profiling` writes to, less a date and a suffix.

    Raises:
        ModelError: ONNX Runtime rejects the model, or the provider can't be started.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    threads = threads or cores()
    options.intra_op_num_threads = threads
    # idle threads that spin would slow down the other of two sessions that are run in turn
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_cpu_mem_arena = False
        options.enable_mem_reuse = False  # frees features at once, rather than keep them for others
        # as written, where it may be: exporters write an operator near what reads it
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(profile)
    try:
        source = model if isinstance(model, bytes) else os.fspath(model)
        providers = {provider: own_options(provider, threads), CPU: {}}
        session = ort.InferenceSession(source, options, providers=list(providers.items()))
    except Exception as error:  # onnxruntime raises a family of its own without a common base
        what = "a piece of the network" if isinstance(model, bytes) else model.name
        raise ModelError(f"ONNX Runtime rejects {what}: {_short(error)}") from error
    if provider not in session.get_providers():  # it falls back to the CPU, and says nothing
        raise ModelError(
            f"{provider} can't be started on this machine: its libraries or its device are missing"
        )
    return session


def run(session: ort.InferenceSession, feeds: Feeds) -> list[NDArray[Any]]:
    """All outputs of the network.

    Raises:
        ModelError: the network can't be run on these inputs.
    """
    try:
        return [_as_array(output) for output in session.run(None, dict(feeds))]
    except Exception as error:
        raise ModelError(f"ONNX Runtime failed on the network: {_short(error)}") from error


def _as_array(output: Any) -> NDArray[Any]:
    """What a network gives as maps (scikit-learn's ZipMap: class -> probability) is a row each."""
    if isinstance(output, list) and output and isinstance(output[0], dict):
        rows = [[entry[key] for key in sorted(entry)] for entry in output]
        return np.array(rows, np.float32)
    return np.asarray(output)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 300 else text[:297] + "..."
