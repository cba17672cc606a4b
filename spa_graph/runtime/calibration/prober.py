"""Running a network for the values within it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from spa_graph.runtime.calibration.wanted import Array
from spa_graph.runtime.inputs import Feeds
from spa_graph.runtime.sessions import Session, open_session, run

Opener = Callable[[Sequence[str]], AbstractContextManager[Path]]
"""Gives a file of the network to which the named inner values were added as outputs."""


class Prober:
    """Runs a network for any of its values; a session stays open until other values are asked for.

    Args:
        opener: see `Opener`; `lambda also: files.openable(path, also)` with the ONNX frontend.
        outputs: the network's own outputs.
    """

    def __init__(self, opener: Opener, outputs: Sequence[str]) -> None:
        self._opener, self._outputs = opener, tuple(outputs)
        self._names: tuple[str, ...] = ()
        self._session: Session | None = None

    def __call__(self, feeds: Feeds, names: Sequence[str]) -> list[Array]:
        """The named values, in this order.

        Raises:
            ModelError: the network can't be run on these inputs.
        """
        if self._session is None or tuple(names) != self._names:
            self._names, self._session = tuple(names), None
            inner = [name for name in dict.fromkeys(names) if name not in self._outputs]
            with self._opener(inner) as path:
                self._session = open_session(path)
        got = dict(
            zip(
                [o.name for o in self._session.get_outputs()],
                run(self._session, feeds),
                strict=True,
            )
        )
        return [got[name] for name in names]
