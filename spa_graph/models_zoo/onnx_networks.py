"""The nine classic topologies that the onnx package carries for its own tests (``light_*.onnx``).

Their weights aren't stored: ConstantOfShape makes them, every element the same. Each is a row as
it is, and a row ``..._stored`` with random weights stored in the place of these operators, which is
the same network as one would really have it.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper

from spa_graph.models_zoo.architectures import SEED
from spa_graph.models_zoo.catalogue import Entry


def rows() -> Iterable[Entry]:
    """Return two rows for every file."""
    for path in sorted(_folder().glob("light_*.onnx")):
        yield Entry("onnx", path.stem, source=functools.partial(Path, path), note="as it is")
        yield Entry(
            "onnx",
            f"{path.stem}_stored",
            source=functools.partial(_stored, path),
            note="with random weights stored",
        )


def _folder() -> Path:
    import onnx.backend.test

    return Path(onnx.backend.test.__file__).parent / "data" / "light"


def _stored(path: Path) -> Path:
    """Write the network with its weights stored; return where."""
    model = onnx.load(path)
    graph, generator = model.graph, np.random.default_rng(SEED)
    shapes = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            kept.append(node)
            continue
        values = _random(generator, tuple(shapes[node.input[0]].tolist()))
        graph.initializer.append(onnx.numpy_helper.from_array(values, node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in graph.node for name in node.input}
    for values_of in (graph.initializer, graph.input):
        unused = [value for value in values_of if value.name not in used]
        for value in unused:
            values_of.remove(value)
    model.ir_version = max(model.ir_version, 8)  # older ones list weights as inputs too
    folder = Path(tempfile.mkdtemp(prefix="light-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # whoever asked copies the file
    target = folder / path.name
    onnx.save(model, target)
    return target


def _random(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """He's magnitudes for weights; anything of one axis (scale, bias, mean, variance) is near 1."""
    if len(shape) < 2:
        return generator.uniform(0.5, 1.5, shape).astype(np.float32)
    scale = np.sqrt(2 / np.prod(shape[1:]))
    return (scale * generator.standard_normal(shape)).astype(np.float32)
