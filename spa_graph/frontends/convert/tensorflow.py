"""Keras files, SavedModel folders and TFLite files -> ONNX, by tf2onnx.

    python -m spa_graph.frontends.convert.tensorflow SOURCE TARGET

The format is told by the name of the file; a folder is a SavedModel.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tf2onnx import convert as tf2onnx
from tf2onnx.handler import tf_op

OPSET = 17


@tf_op("Erfc")
class _Erfc:
    """1 - erf(x), the exact GELU of TensorFlow, which tf2onnx up to 1.17 leaves as it is."""

    @classmethod
    def version_9(cls, context: Any, node: Any, **_options: Any) -> None:
        dtype = context.get_dtype(node.output[0])
        shape = context.get_shape(node.output[0])
        one = context.make_const(f"{node.name}_one", np.array(1, np.float32)).output[0]
        erf = context.make_node("Erf", node.input, shapes=[shape], dtypes=[dtype]).output[0]
        inputs, outputs = [one, erf], node.output
        context.remove_node(node.name)
        context.make_node(
            "Sub", inputs, name=node.name, outputs=outputs, shapes=[shape], dtypes=[dtype]
        )


def _convert(option: str, source: Path, target: Path) -> None:
    """Run tf2onnx's own command in this process, so that it knows the operator above."""
    command = [option, str(source), "--output", str(target), "--opset", str(OPSET)]
    sys.argv = ["tf2onnx", *command]
    tf2onnx.main()


def main(source: Path, target: Path) -> None:
    """Convert one network."""
    if source.is_dir():
        return _convert("--saved-model", source, target)
    if source.suffix.lower() == ".tflite":
        return _convert("--tflite", source, target)
    import keras

    with tempfile.TemporaryDirectory() as folder:
        keras.saving.load_model(source).export(folder, format="tf_saved_model", verbose=False)
        _convert("--saved-model", Path(folder), target)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
