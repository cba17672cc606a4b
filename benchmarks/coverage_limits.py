"""Child processes with a time and a memory limit; only the standard library, Linux.

Each child leads a process group of its own, and is ended with everything in that group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
TAIL = 4000  # characters of what a child printed


@dataclass(frozen=True)
class Limits:
    """What a child may use: seconds, and bytes of memory that no file backs."""

    seconds: float
    memory: float


@dataclass
class Ended:
    """How a child ended.

    Attributes:
        status: "" if it ended by itself and well, else timeout, memory or error.
        reason: in one line.
        seconds: how long it ran.
        memory: the most bytes that its processes were seen to use.
    """

    status: str
    reason: str
    seconds: float
    memory: int


@dataclass
class Child:
    """A running process; `poll` says when it has ended, and ends it where it breaks a limit."""

    command: Sequence[str]
    limits: Limits
    log: Path
    environment: dict[str, str] | None = None
    memory: int = 0
    start: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )

    def poll(self, used: int) -> Ended | None:
        """Return how it ended, if it has; `used` are the bytes of `group_memory`."""
        self.memory = max(self.memory, used)
        if self.process.poll() is not None:
            self.end()  # it may have left children behind
            return self._ended(*self._own_end())
        if self.seconds > self.limits.seconds:
            self.end()
            return self._ended("timeout", f"more than {self.limits.seconds:.0f} s")
        if used > self.limits.memory:
            self.end()
            gibibytes, seconds = self.limits.memory / 2**30, self.seconds
            return self._ended("memory", f"more than {gibibytes:.3g} GiB after {seconds:.0f} s")
        return None

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self.start

    def end(self) -> None:
        """End the whole group, and wait for the process."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _own_end(self) -> tuple[str, str]:
        code = self.process.returncode
        if not code:
            return "", ""
        if code < 0:
            return "error", f"died of {signal.Signals(-code).name}"
        return "error", last_line(self.log) or f"exit {code}"

    def _ended(self, status: str, reason: str) -> Ended:
        return Ended(status, reason, self.seconds, self.memory)


def last_line(log: Path) -> str:
    """The end of what a child printed: usually its exception."""
    text = log.read_bytes()[-TAIL:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def group_memory(groups: Iterable[int]) -> dict[int, int]:
    """Bytes that the processes of each group keep in memory, files that they map apart."""
    found = dict.fromkeys(groups, 0)
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # pid (command) state parent group ...
            group = int((entry / "stat").read_text().rpartition(")")[2].split()[2])
            if group in found:
                _, resident, shared, *_ = (entry / "statm").read_text().split()
                found[group] += (int(resident) - int(shared)) * PAGE
        except (OSError, ValueError, IndexError):
            continue  # it has just ended
    return found


def available_memory() -> float:
    """Bytes that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024.0 * int(line.split()[1])
    return float("inf")
