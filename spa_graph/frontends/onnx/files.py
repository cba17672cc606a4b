"""Reading and writing ONNX files without holding their weights in memory.

`onnx.load` needs a file's size twice (the bytes and the parsed message), saving needs it twice
again. Here the protobuf message is read *around* its weights: the file is memory-mapped, the
payload of every large `raw_data` is left out of the message that is parsed, and a tensor that
reads from the model file itself takes its place. Writing goes the other way: the message is
serialised without the large weights, which are streamed in behind it.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from spa_graph.errors import ModelError, root_cause
from spa_graph.frontends import formats
from spa_graph.frontends.onnx import wire
from spa_graph.frontends.onnx.mapping import MappedFile, Mappings, mapped

MAPPED_FROM = 4096
"""Weights of at least this many bytes are mapped and streamed; smaller ones are parsed."""
INLINE_LIMIT = 2**31 - 2**20
"""A protobuf message must stay below 2 GiB; a larger network is written with external data."""
COPIED_UP_TO = 2**26
"""Files of at most this many bytes are opened by ONNX Runtime as they are."""


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX file; weights stay on disk until they are used.

    Raises:
        ModelError: the file is missing, is not ONNX, is truncated, or its external data is missing
            or lies outside the model's folder.
    """
    path = Path(path)
    model = from_message(read_message(path))
    model.meta["files"] = _map_weights(model, path)
    model.meta["external_data"] = len(model.meta["files"]) > 1
    return model


def from_message(message: onnx.ModelProto) -> ir.Model:
    """The model of a parsed message.

    Raises:
        ModelError: it has no operators, an operator reads a value that nothing defines, or it holds
            what would be lost: sparse tensors, training information.
    """
    graph = message.graph
    if not len(graph.node):
        raise ModelError("the model has no operators; there is nothing to prune")
    if message.training_info:
        raise ModelError(
            "the model holds training_info, which pruning can't follow; export it for inference"
        )
    for name in _sparse_tensors(graph):
        raise ModelError(f"`{name}` is a sparse tensor, which can't be pruned; store it densely")
    defined = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    defined.update(name for node in graph.node for name in node.output)
    for node in graph.node:
        for name in node.input:
            if name and name not in defined:
                raise ModelError(
                    f"operator {node.op_type} `{node.name or node.output[0]}` reads `{name}`, "
                    "which nothing defines; the model is broken: export it again"
                )
    message, maps = _without_maps(message)
    try:
        model = ir.from_proto(message)
    except ir.serde.SerdeError as error:
        raise ModelError(f"the model is not valid ONNX: {root_cause(error)}") from error
    model.meta["maps"] = maps
    return model


def to_message(model: ir.Model) -> onnx.ModelProto:
    """The message of a model, the other way of `from_message`."""
    message = ir.to_proto(model)
    _put_maps(message, model)
    return message


def _without_maps(
    message: onnx.ModelProto,
) -> tuple[onnx.ModelProto, dict[str, onnx.TypeProto]]:
    """A message without types that onnx_ir lacks, and these types by the values that have them.

    They are maps, the outputs of scikit-learn's classifiers: sequences of class -> probability.
    """

    def holding(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
        values = (*graph.output, *graph.value_info)
        return [v for v in values if v.type.sequence_type.elem_type.HasField("map_type")]

    if not holding(message.graph):
        return message, {}
    copy = onnx.ModelProto.FromString(message.SerializeToString())
    maps = {value.name: value.type for value in holding(message.graph)}
    for value in holding(copy.graph):
        value.ClearField("type")
    return copy, maps


def _put_maps(message: onnx.ModelProto, model: ir.Model) -> None:
    maps = model.meta.get("maps") or {}
    for value in (*message.graph.output, *message.graph.value_info):
        if value.name in maps:
            value.type.CopyFrom(maps[value.name])


def _sparse_tensors(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                yield node.output[0]
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _sparse_tensors(inner)


def sources(model: ir.Model) -> list[Path]:
    """The files that a model is read from: its own and those of its weights."""
    found = dict.fromkeys(model.meta.get("files", ()))
    for value in _initializers(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            found[Path(value.const_value.path)] = None
    return list(found)


def size(model: ir.Model) -> int:
    """Bytes of the files that a model is read from."""
    return sum(path.stat().st_size for path in sources(model))


def save(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Write a model; as one file, unless it came with external data or is too large for one.

    Complete or not at all: everything is written under a temporary name in the target's folder,
    then renamed. External data goes to `<name>.data` beside the model.
    """
    path = Path(path)
    with staged(path) as draft:
        write(model, draft)


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A draft to write to; it takes its place beside its data if the block succeeds."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise ModelError(f"cannot write to {path.parent}: {error.strerror}") from error
    try:
        yield folder / path.name
        # NAME.data before NAME; folders were needed meanwhile
        for written in sorted(filter(Path.is_file, folder.iterdir()), reverse=True):
            os.replace(written, path.parent / written.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(model: ir.Model, path: Path) -> None:
    """Write a model to a path that nobody reads yet."""
    size = sum(v.const_value.nbytes for v in _initializers(model) if v.const_value is not None)
    try:
        with _materialised(model), _undeclared(model):
            if model.meta.get("external_data") or size > INLINE_LIMIT:
                data = path.name + ".data"
                ir.save(model, path, external_data=data, size_threshold_bytes=MAPPED_FROM - 1)
                if model.meta.get("maps"):
                    message = onnx.load(path, load_external_data=False)
                    _put_maps(message, model)
                    path.write_bytes(message.SerializeToString())
            else:
                _write_inline(model, path)
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def openable(path: Path, also: Sequence[str] = ()) -> Iterator[Path]:
    """A name under which ONNX Runtime opens a model without copying its weights.

    While it opens a model, it keeps up to three copies of weights that lie inside the file, but
    maps external data. So a large file is read as its own external data: the same bytes at the same
    places, found by decoding the file anew.

    Args:
        also: inner values that become outputs, behind those that there are.
    """
    if path.stat().st_size <= COPIED_UP_TO and not also:
        yield path
        return
    message = read_message(path)
    message.graph.output.extend(onnx.ValueInfoProto(name=name) for name in also)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".onnx")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(message.SerializeToString())
        yield Path(name)
    finally:
        Path(name).unlink()


# --- reading ---------------------------------------------------------------------------------


def read_message(path: Path) -> onnx.ModelProto:
    """The file's message; large weights are references into the file itself."""
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            slim = wire.without_weights(data, path.name.encode(), MAPPED_FROM)
        message = onnx.ModelProto.FromString(slim)
    except FileNotFoundError as error:
        raise ModelError(f"no such file: {path}") from error
    except OSError as error:
        raise _no_onnx(path, f"cannot read {path}: {error.strerror}") from error
    except (wire.WireError, DecodeError, ValueError) as error:
        text = (
            f"{path} is not an ONNX model, or is truncated: {error}; check the download or export"
        )
        raise _no_onnx(path, text) from error
    if not message.HasField("graph") or not message.opset_import:
        raise _no_onnx(path, f"{path} is not an ONNX model: it has no graph or no opset")
    return message


def _no_onnx(path: Path, why: str) -> ModelError:
    """What to say of a file that can't be read: what it is, if it is known, else why it can't."""
    known = formats.instead(path)
    return ModelError(why if known is None else f"{path} is not an ONNX model: {known}")


def _map_weights(model: ir.Model, path: Path) -> list[Path]:
    """Let every weight read from a mapped file; the files, the model's own first."""
    mappings = Mappings()
    own = MappedFile(path.resolve(), mappings)
    known = {os.fspath(own.path): own}

    def share(tensor: ir.ExternalTensor) -> ir.LazyTensor:
        target = _data_file(tensor, path)
        file = known.setdefault(os.fspath(target), MappedFile(target, mappings))
        return mapped(tensor, file)

    for value in _initializers(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = share(value.const_value)
        else:
            _check_readable(value)
    for graph in model.graphs():
        for node in graph:
            for key, attribute in list(node.attributes.items()):
                if isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes[key] = ir.AttrTensor(key, share(attribute.value))
    return [file.path for file in known.values()]


def _check_readable(value: ir.Value) -> None:
    """A weight that was parsed has as many numbers as its shape says."""
    try:
        value.const_value.numpy()  # type: ignore[union-attr]
    except (ValueError, TypeError) as error:
        raise ModelError(f"weight `{value.name}` is broken: {error}") from error


def _data_file(tensor: ir.ExternalTensor, path: Path) -> Path:
    """The file that holds a weight, checked: it lies in the model's folder and is complete.

    A model that is a link has two folders, the one where it is called and the one where it is: a
    download cache keeps links to the model and to its data side by side.
    """
    location = os.fspath(tensor.location)
    folders = [path.parent.resolve(), path.resolve().parent]
    targets = [(folder / location).resolve() for folder in folders]
    targets = [target for target in targets if any(map(target.is_relative_to, folders))]
    if not targets:
        raise ModelError(
            f"{path}: weight `{tensor.name}` points outside the model's folder ({location}); "
            "refused: move the data file beside the model"
        )
    target = next((target for target in targets if target.is_file()), None)
    if target is None:
        raise ModelError(
            f"{path}: external data file {location} of weight `{tensor.name}` is missing; "
            "put it beside the model"
        )
    if tensor.length is not None and tensor.length != tensor.nbytes:
        raise ModelError(
            f"{path}: weight `{tensor.name}` has {tensor.length} bytes, but its shape needs "
            f"{tensor.nbytes}"
        )
    stop, size = (tensor.offset or 0) + tensor.nbytes, target.stat().st_size
    if size < stop:
        raise ModelError(
            f"{path}: external data file {location} is truncated: weight `{tensor.name}` "
            f"needs {stop} bytes, the file has {size}"
        )
    return target


def _initializers(model: ir.Model) -> list[ir.Value]:
    values = [v for graph in model.graphs() for v in graph.initializers.values()]
    return [value for value in values if value.const_value is not None]


# --- writing ---------------------------------------------------------------------------------


def _write_inline(model: ir.Model, path: Path) -> None:
    main = [v for v in model.graph.initializers.values() if _large(v.const_value)]
    weights = [value.const_value for value in main]
    try:
        for value, tensor in zip(main, weights, strict=True):
            value.const_value = _placeholder(value.name, tensor)
        message = to_message(model)
    finally:
        for value, tensor in zip(main, weights, strict=True):
            value.const_value = tensor
    slim = {v.name: t for v, t in zip(main, weights, strict=True)}
    with path.open("wb") as file:
        _stream(message, slim, file)


def _large(tensor: Any) -> bool:
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return False
    return int(tensor.nbytes) >= MAPPED_FROM


def _placeholder(name: str | None, tensor: Any) -> ir.ExternalTensor:
    return ir.ExternalTensor("-", 0, 0, tensor.dtype, shape=ir.Shape(tensor.shape), name=name or "")


@contextmanager
def _materialised(model: ir.Model) -> Iterator[None]:
    """Mapped tensors that are written as part of the message are plain ones for a while.

    These are small initializers, those of subgraphs, and tensors in attributes.
    """
    undo: list[tuple[Any, Any, Any]] = []
    for graph in model.graphs():
        for value in graph.initializers.values():
            small = graph is not model.graph or not _large(value.const_value)
            if isinstance(value.const_value, ir.ExternalTensor) and small:
                undo.append((value, "const_value", value.const_value))
                value.const_value = _in_memory(value.const_value)
        for node in graph:
            for key, attribute in list(node.attributes.items()):
                if isinstance(attribute.value, ir.ExternalTensor):
                    undo.append((node.attributes, key, attribute))
                    node.attributes[key] = ir.AttrTensor(key, _in_memory(attribute.value))
    try:
        yield
    finally:
        for owner, key, old in undo:
            if isinstance(owner, ir.Value):
                owner.const_value = old
            else:
                owner[key] = old


@contextmanager
def _undeclared(model: ir.Model) -> Iterator[None]:
    """Initializers say their types and shapes by themselves for a while, not in `value_info` too.

    Tools that change a weight (ONNX Runtime's quantiser up to 1.31 transposes some) leave such an
    entry as it was, and fail on it.
    """
    undo = []
    for graph in model.graphs():
        interface = {*graph.inputs, *graph.outputs}  # whose types must be stated
        for value in graph.initializers.values():
            if value not in interface:
                undo.append((value, value.type, value.shape))
                value.type = value.shape = None
    try:
        yield
    finally:
        for value, kind, shape in undo:
            value.type, value.shape = kind, shape


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


def _stream(message: onnx.ModelProto, weights: dict[Any, Any], file: IO[bytes]) -> None:
    """Write `message`, its placeholder initializers filled from `weights` one at a time."""
    headers = []
    for tensor in message.graph.initializer:
        if tensor.name in weights:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            headers.append((tensor.SerializeToString(), weights[tensor.name]))
    small = [tensor for tensor in message.graph.initializer if tensor.name not in weights]
    del message.graph.initializer[:]
    message.graph.initializer.extend(small)
    graph = message.graph.SerializeToString()
    message.ClearField("graph")
    framed = [(wire.weight_header(head, tensor.nbytes), tensor) for head, tensor in headers]
    total = len(graph) + sum(len(head) + tensor.nbytes for head, tensor in framed)
    file.write(message.SerializeToString())
    file.write(wire.graph_header(total) + graph)
    for head, tensor in framed:
        file.write(head)
        tensor.tofile(file)
