"""Protobuf's wire format, as far as reading a model around its weights needs it.

https://protobuf.dev/programming-guides/encoding: a message is a sequence of (tag, payload); tag =
field number << 3 | wire type; length-delimited payloads (wire type 2) carry their length as a
varint. Repeated fields may stand anywhere in the message, which is what lets the weights go last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Where tensors stand: ModelProto.graph -> initializer, and graph -> node -> attribute -> t
_TENSOR: dict[int, Any] = {}
_MODEL = {7: {5: _TENSOR, 1: {5: {5: _TENSOR}}}}
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5


class WireError(Exception):
    """The bytes are not a protobuf message."""


def without_weights(data: Any, file: bytes, mapped_from: int) -> bytes:
    """A serialised ModelProto without its large weights, which are named by their place in `file`.

    Args:
        data: the bytes of the model, sliceable.
        file: the name to refer to them by.
        mapped_from: how many bytes make a weight large.

    Raises:
        WireError: the bytes are not a message.
    """
    return _without_weights(data, 0, len(data), _MODEL, (file, mapped_from))


def weight_header(tensor: bytes, size: int) -> bytes:
    """What stands before the bytes of a weight, given the rest of its TensorProto."""
    raw = encode_varint(_RAW_DATA << 3 | _BYTES) + encode_varint(size)
    length = len(tensor) + len(raw) + size
    return encode_varint(_GRAPH_INITIALIZER << 3 | _BYTES) + encode_varint(length) + tensor + raw


def graph_header(size: int) -> bytes:
    """What stands before a model's graph of `size` bytes."""
    return encode_varint(_MODEL_GRAPH << 3 | _BYTES) + encode_varint(size)


def _varint(data: Any, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            break
    raise WireError("a number runs past its end")


def _fields(data: Any, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """The fields of one message: (number, wire type, field start, payload start, payload end)."""
    while at < end:
        start = at
        tag, at = _varint(data, at, end)
        wire = tag & 7
        if wire == _VARINT:
            payload, (_, stop) = at, _varint(data, at, end)
        elif wire == _BYTES:
            length, payload = _varint(data, at, end)
            stop = payload + length
        elif wire in (_FIXED64, _FIXED32):
            payload, stop = at, at + (8 if wire == _FIXED64 else 4)
        else:
            raise WireError(f"unknown wire type {wire} at byte {start}")
        if stop > end or tag >> 3 == 0:
            raise WireError(f"a field at byte {start} runs past the end of its message")
        yield tag >> 3, wire, start, payload, stop
        at = stop


def _without_weights(
    data: Any, start: int, end: int, spec: dict[int, Any], where: tuple[bytes, int]
) -> bytes:
    """The message in data[start:end], large raw_data replaced by a reference into the file."""
    parts = []
    for number, wire, begin, payload, stop in _fields(data, start, end):
        inner = spec.get(number) if wire == _BYTES else None
        if inner is None or stop - payload < where[1]:
            parts.append(data[begin:stop])
        else:
            slim = (
                _reference_tensor(data, payload, stop, where)
                if inner is _TENSOR
                else _without_weights(data, payload, stop, inner, where)
            )
            parts.append(_delimited(number, slim))
    return b"".join(parts)


def _reference_tensor(data: Any, start: int, end: int, where: tuple[bytes, int]) -> bytes:
    """A TensorProto whose raw_data, if large, is named by file, offset and length instead."""
    parts, reference = [], b""
    file, mapped_from = where
    for number, _, begin, payload, stop in _fields(data, start, end):
        if number != _RAW_DATA or stop - payload < mapped_from:
            parts.append(data[begin:stop])
            continue
        place = {b"location": file, b"offset": payload, b"length": stop - payload}
        for key, value in place.items():
            text = value if isinstance(value, bytes) else str(value).encode()
            entry = _delimited(1, key) + _delimited(2, text)
            reference += _delimited(_EXTERNAL_DATA, entry)
        reference += encode_varint(_DATA_LOCATION << 3 | _VARINT) + b"\x01"  # EXTERNAL
    # last, since the last one counts: some tools write that the location is the default
    return b"".join((*parts, reference))


def encode_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _delimited(number: int, payload: bytes) -> bytes:
    return encode_varint(number << 3 | _BYTES) + encode_varint(len(payload)) + payload
