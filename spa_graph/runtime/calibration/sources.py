"""What people give as calibration data: files, functions, arrays, iterables of batches."""

from __future__ import annotations

import inspect
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from spa_graph.errors import OptionError
from spa_graph.runtime.calibration.pieces import Piece, Shelf, as_array, piece, stacked
from spa_graph.runtime.calibration.wanted import Array, Wanted, only_input
from spa_graph.runtime.imported import imported, said

MAPPED_FROM = 2**26
"""Arrays of a .npz file of at least this many bytes are unpacked to disk and mapped."""


# --- arrays and iterables ------------------------------------------------------------------------


def from_object(given: object, wants: tuple[Wanted, ...], label: str, samples: int) -> list[Piece]:
    """Samples of a Python object.

    Args:
        given: a dict of arrays by input name, a tuple of arrays by input order, or one array, each
            with samples along its sample axis; else an iterable of any of these, each a batch or a
            single sample. Of a tuple that is too long, such as (images, labels), the front counts.

    Raises:
        OptionError: it is none of these, or doesn't fit the network.
    """
    if isinstance(given, Mapping | tuple) or hasattr(given, "__array__"):
        arrays = _arrays(given, wants, label)
        return stacked(arrays, wants, label) or [piece(arrays, wants, label)]
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise OptionError(
            f"{label}: a {type(given).__name__} is no calibration data; give arrays by input name, "
            "an array, or an iterable of them"
        )
    return _collect(given, wants, label, samples)


def _arrays(given: object, wants: tuple[Wanted, ...], where: str) -> Mapping[str, Any]:
    """What one dict, tuple or array says, by input name."""
    if isinstance(given, Mapping):
        return given
    if isinstance(given, tuple | list) and given and not isinstance(given[0], int | float):
        if len(given) < len(wants):
            raise OptionError(
                f"{where}: {len(given)} arrays for {len(wants)} inputs; give one for each of "
                + ", ".join(f"`{want.name}`" for want in wants)
            )
        return {want.name: value for want, value in zip(wants, given, strict=False)}
    return {only_input(wants, where).name: given}


def _collect(
    items: Iterable[object], wants: tuple[Wanted, ...], label: str, samples: int
) -> list[Piece]:
    """Take batches until there are enough samples, and set them aside: they may not come twice."""
    shelf, pieces, count = Shelf(), [], 0
    for number, item in enumerate(items):
        where = f"{label}, batch {number}"
        arrays = _arrays(item, wants, where)
        kept = {
            want.name: shelf.keep(as_array(arrays[want.name], want, where))
            for want in wants
            if want.name in arrays
        }
        got = piece({**arrays, **kept}, wants, where)
        whole = got.ordered(wants)
        pieces.append(Piece(got.arrays, got.same, got.count, whole))
        count += got.count
        if count >= samples:
            break
    if not pieces:
        raise OptionError(f"{label}: it is empty; at least one sample is needed")
    return pieces


# --- functions -----------------------------------------------------------------------------------


def from_function(spec: str, wants: tuple[Wanted, ...], samples: int, seed: int) -> list[Piece]:
    """Samples of `package.module:function`.

    Raises:
        OptionError: it can't be imported, fails, or gives something else than samples.
    """
    function = imported(spec)
    if not callable(function):
        return from_object(function, wants, spec, samples)
    return from_callable(function, wants, spec, samples, seed)


def from_callable(
    function: Callable[..., object],
    wants: tuple[Wanted, ...],
    label: str,
    samples: int,
    seed: int,
) -> list[Piece]:
    """Samples of what a function returns; it gets `samples` and `seed` if it takes them.

    Raises:
        OptionError: it fails, or gives something else than samples.
    """
    try:
        takes: Iterable[str] = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in functions tell nothing
        takes = ()
    offered = {"samples": samples, "seed": seed}
    given = {name: value for name, value in offered.items() if name in takes}
    try:
        return from_object(function(**given), wants, label, samples)
    except OptionError:
        raise
    except Exception as error:  # it is the user's own function
        raise OptionError(f"{label}: it failed: {type(error).__name__}: {said(error)}") from error


# --- files ---------------------------------------------------------------------------------------


def from_file(path: Path, wants: tuple[Wanted, ...]) -> list[Piece]:
    """Samples of a .npy or .npz file; large arrays stay on disk.

    Raises:
        OptionError: it can't be read, or doesn't fit the network.
    """
    arrays = {"": _map_npy(path)} if path.suffix == ".npy" else _read_npz(path, wants)
    where = path.name
    if set(arrays) in ({""}, {"arr_0"}):  # what has no name
        arrays = {only_input(wants, where).name: next(iter(arrays.values()))}
    return stacked(arrays, wants, where) or [piece(arrays, wants, where)]


def check_file(path: Path) -> None:
    """Whether a .npy or .npz file can be read at all; of the latter nothing is.

    Raises:
        OptionError: it can't.
    """
    if path.suffix == ".npy":
        _map_npy(path)
    else:
        with _reading(path):
            zipfile.ZipFile(path).close()


def _map_npy(path: Path) -> Array:
    with _reading(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise OptionError(f"{path.name} is not a .npy file, whatever its name says")
    return array


def _read_npz(path: Path, wants: tuple[Wanted, ...]) -> dict[str, Array]:
    """The arrays of a .npz file; those of names that no input has are not read."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        members = {
            info.filename.removesuffix(".npy"): info
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }
        if not members:
            raise OptionError(f"{path.name} holds no arrays")
        names = {want.name for want in wants}
        if len(members) > 1 and set(members) != names:
            _blame(path, set(members), names)
        return {name: _unpack(archive, info) for name, info in members.items()}


def _blame(path: Path, got: set[str], names: set[str]) -> None:
    wrong = sorted(got - names) or sorted(names - got)
    what = "holds" if got - names else "lacks"
    raise OptionError(
        f"{path.name} {what} `{wrong[0]}`; name its arrays like the network's inputs: "
        + ", ".join(f"`{name}`" for name in sorted(names))
    )


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    """One array: read if it is small, else unpacked to a file that vanishes, and mapped."""
    with archive.open(info) as member:
        if info.file_size < MAPPED_FROM:
            return np.lib.format.read_array(member, allow_pickle=False)
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:
            shutil.copyfileobj(member, file, 2**20)
            file.flush()
            return np.load(file.name, mmap_mode="r", allow_pickle=False)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever NumPy and the file system say about a file, in one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise OptionError(f"no such file: {path}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        what = said(error)
        if any(hint in what for hint in ("allow_pickle", "Object arrays", "Python objects")):
            what = "it holds Python objects; store plain arrays of numbers"
        raise OptionError(f"cannot read {path.name}: {what}") from error
