"""Peak memory of a session, in a process that does nothing else.

    python -m spa_graph.runtime.benchmark.memory MODEL FEEDS.npz PROVIDER THREADS

prints the bytes. They are the host's: what a provider keeps on its device isn't seen.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from spa_graph.errors import ModelError
from spa_graph.runtime.providers import CPU
from spa_graph.runtime.sessions import Feeds, open_session, run

RUNS = 3
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class Meter:
    """The most memory that this process uses from now on, beyond what it uses now."""

    def __init__(self) -> None:
        self._reset = True
        try:
            _RESET.write_text("5", encoding="utf-8")  # the peak so far is forgotten
        except OSError:
            self._reset = False
        self._base = _bytes("VmRSS")

    def used(self) -> int | None:
        """Bytes; None where the system can't tell."""
        peak = _bytes("VmHWM")
        return max(peak - self._base, 0) if self._reset and peak else None


def peak_memory(model: Path, feeds: Feeds, *, provider: str = CPU, threads: int = 0) -> int | None:
    """Bytes that opening a network and running it a few times adds to a process at its peak.

    None where the system doesn't tell (it is Linux that does).

    Raises:
        ModelError: the process failed.
    """
    if not _RESET.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feeds.npz"
        np.savez(path, **dict(feeds))  # type: ignore[arg-type]  # names of inputs, not of options
        command = [sys.executable, "-m", __name__, str(model), str(path), provider, str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ModelError(f"measuring the memory of {model} failed: {last}")
    return int(done.stdout)


def _bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (at the peak); 0 where the system doesn't tell."""
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) << 10
    return 0


def _main() -> None:
    model, path, provider, threads = sys.argv[1:]
    with np.load(path) as arrays:
        feeds = dict(arrays)
    memory = Meter()
    session = open_session(Path(model), provider=provider, threads=int(threads))
    for _ in range(RUNS):
        run(session, feeds)
    used = memory.used()
    if used is None:
        raise SystemExit(f"{_RESET} or {_STATUS} can't be used")
    print(used)


if __name__ == "__main__":
    _main()
