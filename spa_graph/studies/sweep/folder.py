"""The folder of a sweep: each point has a file of its own, so that it goes on where it stopped.

sweep.json              the settings, and the whole network
l1-flops-0.50.json      a point, written after its network
l1-flops-0.50.onnx      its network
sweep.csv, sweep.svg    all points, written anew by each run
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spa_graph.errors import OptionError
from spa_graph.frontends.onnx import files

FORMAT = "spa-sweep/1"
SETTINGS = "sweep.json"
NOTE = ".note-"
COLUMNS = (
    "criterion", "quantity", "asked", "flops", "params", "memory", "bytes", "error", "metric",
    "time", "ms", "frontier", "file", "failure",
)  # fmt: skip


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """One network of a sweep: pruned by a criterion to a share of a quantity."""

    criterion: str
    quantity: str
    asked: float

    @staticmethod
    def of(data: dict[str, Any]) -> Point:
        """The point that a record is of."""
        return Point(data["criterion"], data["quantity"], data["asked"])

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.criterion}-{self.quantity}-{self.asked:.6g}"


class Folder:
    """What is known of a sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def model(self, point: Point) -> Path:
        return self.path / f"{point.name}.onnx"

    def record(self, point: Point) -> Path:
        return self.path / f"{point.name}.json"

    def check_place(self) -> None:
        """Whether there is such a folder, or can be.

        Raises:
            OptionError: there can't.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OptionError(f"{self.path} is a file; name a folder")
        if not self.path.parent.is_dir():
            raise OptionError(f"cannot make {self.path}: {self.path.parent} does not exist")
        there = self.path if self.path.exists() else self.path.parent
        if not os.access(there, os.W_OK):
            raise OptionError(f"cannot write {self.path}: no permission to write in {there}")

    def check(self, settings: dict[str, Any]) -> None:
        """Whether a sweep with these settings can go on here; nothing is written.

        Raises:
            OptionError: the folder holds networks of other settings, or can't be made.
        """
        self.check_place()
        known = self.settings()
        if known is None or not self.points():
            return
        other = sorted(k for k in {*known, *settings} if known.get(k) != settings.get(k))
        if other:
            raise OptionError(
                f"{self.path} holds a sweep with other {', '.join(other)}; choose another folder "
                "with --output, or replace it with --overwrite"
            )

    def begin(self, settings: dict[str, Any], whole: dict[str, Any]) -> None:
        """Make the folder, with nothing of another sweep; `whole` is the unpruned network.

        Raises:
            OptionError: it can't be made.
        """
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise OptionError(f"cannot make {self.path}: {error.strerror}") from error
        self._clear()
        self.write_json(SETTINGS, {"format": FORMAT, "settings": settings, "whole": whole})

    def missing(self, points: Iterable[Point]) -> list[Point]:
        """The points that were not done yet."""
        return [point for point in points if not self.record(point).exists()]

    def forget_failed(self) -> None:
        """Let what could not be evaluated be done again."""
        for data in self.points():
            if not data.get("evaluated", True):
                self.record(Point.of(data)).unlink()

    def points(self) -> list[dict[str, Any]]:
        """All points that were done, also by earlier runs, in order."""
        read = [self._read(path) for path in self.path.glob("*.json") if path.name != SETTINGS]
        found = [data for data in read if data and data.get("format") == FORMAT]
        return sorted(found, key=lambda data: (data["criterion"], data["quantity"], -data["asked"]))

    def write_point(self, point: Point, data: dict[str, Any]) -> None:
        """Record a point; its network must be there."""
        self.write_json(self.record(point).name, {"format": FORMAT, **asdict(point), **data})

    def write_json(self, name: str, data: dict[str, Any]) -> None:
        with files.staged(self.path / name) as draft:
            draft.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    def write_table(self, points: Sequence[dict[str, Any]]) -> None:
        """All points as CSV."""
        with (
            files.staged(self.path / "sweep.csv") as draft,
            draft.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(points)

    def whole(self) -> dict[str, Any] | None:
        """What was measured of the whole network, or None."""
        data = self._read(self.path / SETTINGS) or {}
        found: dict[str, Any] | None = data.get("whole")
        return found

    def settings(self) -> dict[str, Any] | None:
        """The settings that it was begun with, or None if it wasn't."""
        data = self._read(self.path / SETTINGS)
        if data is None or data.get("format") != FORMAT:
            return None
        found: dict[str, Any] = data["settings"]
        return found

    def write_note(self, text: str) -> None:
        """Leave a line for whoever runs the sweep; several workers may leave the same one."""
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.write_json(f"{NOTE}{digest}.json", {"note": text})

    def notes(self) -> list[str]:
        """What workers have said so far."""
        read = [self._read(path) for path in sorted(self.path.glob(f"{NOTE}*.json"))]
        return [data["note"] for data in read if data]

    def remove_drafts(self) -> None:
        """Remove what was of use while workers ran, and what those that were killed left."""
        for note in self.path.glob(f"{NOTE}*.json"):
            note.unlink(missing_ok=True)
        for pattern in (".spa-prune.*", ".*.onnx.*", ".*.json.*"):
            for left in self.path.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)

    def _clear(self) -> None:
        """Remove what a sweep wrote, and nothing else."""
        for data in self.points():
            point = Point.of(data)
            model = self.model(point)
            for path in (self.record(point), model, model.with_name(f"{model.name}.data")):
                path.unlink(missing_ok=True)

    @staticmethod
    def _read(path: Path) -> dict[str, Any] | None:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise OptionError(f"cannot read {path}: {error}; remove it to go on") from error
        return data if isinstance(data, dict) else None


def fingerprint(model: Path) -> str:
    """What tells a network from another: a digest of its files."""
    digest = hashlib.sha256()
    for path in files.sources(files.load(model)):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
