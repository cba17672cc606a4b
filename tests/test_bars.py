"""Progress on a terminal."""

from __future__ import annotations

import io
from functools import partial

import pytest
from rich.console import Console

from spa_graph.console import bars


def test_a_long_detail_leaves_the_times_in_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    terminal = partial(Console, file=written, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(bars, "Console", lambda **_: terminal())
    with bars.progress(quiet=False) as update:
        assert update is not None
        update("reconstruct", 1, 12, "a layer with a long name: " + "error 0.285 -> 0.187" * 5)
    last = written.getvalue().replace("\r", "\n").splitlines()[-2]
    assert "1/12 0:00:00 -:--:-- a layer" in last
    assert "…" in last
