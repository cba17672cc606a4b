"""How the C library keeps memory that was freed.

Features of a network are large blocks that live shortly. glibc maps and unmaps such blocks, until
the first is freed: from then on it keeps free blocks of up to 32 MiB in its heap, where those that
it gave out aligned leave holes that blocks of the same size don't fit into. What a run needs at a
time is then a fraction of what the process holds.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_USUAL = 32 << 20
"""What glibc's own threshold grows to."""
_LEAST = 1 << 20
"""Mapping takes longer than finding a place in the heap; below this size, clearly so."""


@contextmanager
def returning(block: int) -> Iterator[None]:
    """Give freed blocks of at least so many bytes back to the system at once, where glibc is used.

    Args:
        block: in bytes; at least 1 MiB, at most what is usual are taken.
    """
    _set_threshold(min(max(block, _LEAST), _USUAL))
    try:
        yield
    finally:
        _set_threshold(_USUAL)


def trim() -> None:
    """Give back all that is free, networks that only refer to themselves included.

    Python looks for such cycles when it has made many objects, not when they are large.
    """
    gc.collect()
    _call("malloc_trim", 0)


def _set_threshold(size: int) -> None:
    """Map blocks from this size on; and keep no more than twice as much free memory."""
    _call("mallopt", _MMAP_THRESHOLD, size)
    _call("mallopt", _TRIM_THRESHOLD, 2 * size)


def _call(name: str, *arguments: int) -> None:
    """Call a function of the C library, where it has it: glibc does, musl doesn't."""
    if sys.platform.startswith("linux"):
        function = getattr(ctypes.CDLL(None), name, None)
        if function is not None:
            function(*arguments)
