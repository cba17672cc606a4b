"""Keras files, SavedModel folders and TFLite files -> ONNX, by tf2onnx.

    python -m spa_graph.frontends.convert.tensorflow SOURCE TARGET

The format is told by the name of the file; a folder is a SavedModel.
"""

from __future__ import annotations

import sys
import tempfile
import textwrap
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tf2onnx import convert as tf2onnx
from tf2onnx.handler import tf_op

from spa_graph.frontends.formats import GRAPH_FILE

OPSET = 17
SAID = 200
"""Letters of what Keras says against a file; it may show all of the file's configuration."""
COMPILED = ("_XlaMustCompile", "_noinline")
"""What TensorFlow's functions and calls are marked by if XLA compiles them, each on its own."""


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


def _convert_saved_model(source: Path, target: Path) -> None:
    """A SavedModel, with the bodies of functions that XLA compiles in the place of their calls.

    TensorFlow inlines all others itself, and tf2onnx leaves a call as it is: Keras' convolutions
    of groups come as such functions, as TensorFlow has no kernel for them on the CPU.
    """
    saved = SavedModel.FromString((source / GRAPH_FILE).read_bytes())
    for function in chain.from_iterable(m.graph_def.library.function for m in saved.meta_graphs):
        for marked in (function, *function.node_def):
            for name in COMPILED:
                marked.attr.pop(name, None)
    with tempfile.TemporaryDirectory() as folder:
        for each in source.resolve().iterdir():
            if each.name != GRAPH_FILE:
                (Path(folder) / each.name).symlink_to(each)
        (Path(folder) / GRAPH_FILE).write_bytes(saved.SerializeToString())
        _convert("--saved-model", Path(folder), target)


def main(source: Path, target: Path) -> None:
    """Convert one network."""
    if source.is_dir():
        return _convert_saved_model(source, target)
    if source.suffix.lower() == ".tflite":
        return _convert("--tflite", source, target)
    import keras

    try:
        model = keras.saving.load_model(source)
    except Exception as error:  # whatever is wrong with it, or with the layers that it names
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        said = textwrap.shorten(last[0], SAID, placeholder=" ...")
        sys.exit(
            f"Keras can't load it alone ({said}); if you can, with what it needs, give what "
            "model.export('FOLDER') writes, a SavedModel"
        )
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, format="tf_saved_model", verbose=False)
        _convert_saved_model(Path(folder), target)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
