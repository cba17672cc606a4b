"""What a user can choose, and the timer that tells how the steps go."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from numbers import Real
from typing import Any, Literal, Protocol, get_args

from spa_graph.coupling.scope import Block
from spa_graph.coupling.structures import KINDS, Kind
from spa_graph.errors import OptionError
from spa_graph.frontends.onnx.sizes import InputShapes
from spa_graph.passes.allocate import Budget
from spa_graph.passes.cost import Quantity


class Progress(Protocol):
    """Told how the steps go."""

    def __call__(self, step: str, done: int, total: int, detail: str = "") -> None:
        """How much of a step is done, how much there is, and perhaps what came out last."""


class StepProgress(Protocol):
    """Told how one step goes."""

    def __call__(self, done: int, total: int, detail: str = "") -> None: ...


Method = Literal["none", "bias", "bn", "ls", "obspa"]
"""How the weights that are left are refitted, see `passes/reconstruct`."""
METHODS: tuple[Method, ...] = get_args(Method)
KEPT: tuple[Quantity, ...] = get_args(Quantity)
BUDGETS = ("flops", "params", "ratio", "memory", "latency")
"""At most one is given: the share that is kept of a quantity, or the ratio that goes everywhere."""
LEAST_MEMORY = 64 << 20
NEEDS: dict[str, tuple[str, ...]] = {
    "samples": ("calibrate", "data"),
    "preprocess": ("calibrate",),
    "memory_limit": ("calibrate",),
    "loss": ("data",),
    "learning_rate": ("finetune",),
    "teacher": ("finetune",),
}
"""Options that have no effect unless one of others is given."""
CHOICES: dict[str, tuple[str, ...]] = {
    "scope": KINDS,
    "attention": ("heads", "head-dim"),
    "groups": ("groups", "within"),
    "reconstruct": METHODS,
    "allocation": ("global", "distortion"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user can choose; the fields are the options of the command line."""

    flops: float | None = None
    params: float | None = None
    ratio: float | None = None
    memory: float | None = None
    latency: float | str | None = None
    provider: str = "cpu"
    threads: int = 0
    batch: int | None = None
    criterion: str | None = None
    aggregate: str = "mean"
    normalize: str = "mean"
    seed: int = 0
    min_channels: int = 1
    round_to: int | None = None
    exclude: tuple[str, ...] = ()
    exact: bool = False
    scope: tuple[Kind, ...] = ()
    attention: Literal["heads", "head-dim"] = "heads"
    groups: Literal["groups", "within"] = "groups"
    input_shapes: InputShapes = field(default_factory=dict)
    calibrate: Any = None
    samples: int | None = None
    preprocess: str | None = None
    reconstruct: Method | None = None
    allocation: Literal["global", "distortion"] | None = None
    memory_limit: int = 4 << 30
    data: Any = None
    loss: Any = None
    finetune: int | None = None
    learning_rate: float = 1e-3
    teacher: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.exclude, str):  # one pattern, not its letters
            object.__setattr__(self, "exclude", (self.exclude,))
        given = {name: v for name in BUDGETS if (v := getattr(self, name)) is not None}
        for name, value in given.items():
            if name == "latency" and isinstance(value, str):
                _, ratio = milliseconds_or_ratio(value)
                object.__setattr__(self, "latency", ratio or value)
            elif not isinstance(value, Real) or not 0 < float(value) < 1:
                raise OptionError(f"--{name} must lie between 0 and 1, not {value}")
        if len(given) > 1:
            raise OptionError(f"give one budget, not {' and '.join('--' + n for n in given)}")
        if self.min_channels < 1 or (self.round_to is not None and self.round_to < 1):
            raise OptionError("--min-channels and --round-to must be at least 1")
        if self.threads < 0 or (self.batch is not None and self.batch < 1):
            raise OptionError("--threads must be at least 0, and --batch at least 1")
        if isinstance(self.scope, str):  # as on the command line
            object.__setattr__(self, "scope", tuple(self.scope.split(",")))
        for name, allowed in CHOICES.items():
            chosen = getattr(self, name)
            for each in chosen if name == "scope" else (chosen,):
                if each not in allowed and each is not None:
                    raise OptionError(f"--{name} {each}: choose among {', '.join(allowed)}")
        self._check_needs()
        self._check_finetuning()
        if self.data is not None and self.loss is None:
            raise OptionError("--data needs --loss: gradients are those of a loss over data")
        self._check_calibration()

    def _check_needs(self) -> None:
        defaults = {each.name: each.default for each in fields(self)}
        given = {name for name in NEEDS if getattr(self, name) != defaults[name]}
        check_needs(NEEDS, given, {name: getattr(self, name) is not None for name in defaults})

    def _check_finetuning(self) -> None:
        if self.finetune is None:
            return
        if self.finetune < 1 or not self.learning_rate > 0:
            raise OptionError("--finetune must be at least 1 epoch, and --learning-rate positive")
        if self.data is None:
            raise OptionError("--finetune needs --data: samples with targets to train on")
        if self.loss is None:
            object.__setattr__(self, "loss", "cross-entropy")

    def _check_calibration(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise OptionError("--samples must be at least 1")
        if self.memory_limit < LEAST_MEMORY:
            raise OptionError(f"--memory-limit must be at least {LEAST_MEMORY >> 20} MiB")
        if self.calibrate is not None:
            return
        for name in ("reconstruct", "allocation"):
            if getattr(self, name) not in (None, "none", "global"):
                raise OptionError(
                    f"--{name} {getattr(self, name)} needs calibration data: "
                    "add --calibrate FILE, or --calibrate data-free"
                )

    @property
    def criterion_name(self) -> str:
        """The criterion: what measures best with calibration data, with a loss, and without."""
        without = "l1" if self.data is None else "taylor"
        return self.criterion or (without if self.calibrate is None else "obspa")

    @property
    def method(self) -> Method:
        """How weights are refitted."""
        return self.reconstruct or ("ls" if self.calibrate is not None else "none")

    @property
    def within(self) -> tuple[Block, ...]:
        """The blocks that keep their number."""
        heads: tuple[Block, ...] = ("heads",) if self.attention == "head-dim" else ()
        return heads + (("groups",) if self.groups == "within" else ())

    def towards(self, share: float) -> Options:
        """The same with a budget on the way to this one: the kept share to the power of `share`.

        Without a measured allocation, which is for the last step.
        """
        ratio = None if self.ratio is None else 1 - (1 - self.ratio) ** share
        given = {name: v for name in KEPT if (v := getattr(self, name)) is not None}
        kept = {name: float(value) ** share for name, value in given.items()}
        return replace(self, **kept, ratio=ratio, allocation="global")

    def plain(self) -> dict[str, Any]:
        """What was chosen, as JSON-ready data."""
        given = {name: getattr(self, name) for name in self.__dataclass_fields__}
        given["criterion"], given["reconstruct"] = self.criterion_name, self.method
        return {
            name: plain(value)
            for name, value in given.items()
            if value is not None and not (isinstance(value, tuple | dict) and not value)
        }

    @property
    def budget(self) -> Budget | None:
        """The budget on the whole network, or None for a uniform ratio."""
        for quantity in KEPT:
            kept = getattr(self, quantity)
            if isinstance(kept, Real):
                return Budget(quantity, float(kept))
        return None


def check_needs(
    needs: Mapping[str, Sequence[str]], given: Collection[str], there: Mapping[str, bool]
) -> None:
    """Whether each option that was given can have an effect.

    Args:
        needs: by option those of which one must be there; see NEEDS.
        given: the options that were given.
        there: all options, by whether something follows from them, given or by default.

    Raises:
        OptionError: one would be ignored.
    """
    for name, others in needs.items():
        known = [other for other in others if other in there]
        if name in given and known and not any(there[other] for other in known):
            wanted = " or ".join(map(flag, known))
            raise OptionError(f"{flag(name)} needs {wanted}: it has no effect without")


def flag(name: str) -> str:
    """An option as the command line spells it."""
    return f"--{name.replace('_', '-')}"


_LATENCY = re.compile(r"(\d+\.?\d*|\.\d+)\s*(us|µs|ms|s|)")
_MILLISECONDS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}


def milliseconds_or_ratio(latency: str) -> tuple[float | None, float | None]:
    """`12ms`, `800us` or `0.5`: milliseconds, or the share of the original's latency.

    Raises:
        OptionError: it is neither.
    """
    found = _LATENCY.fullmatch(latency.strip())
    number = float(found[1]) if found else 0.0
    if found and found[2] and number > 0:
        return number * _MILLISECONDS[found[2]], None
    if found is None or not 0 < number < 1:
        meant = f"; {number:g} milliseconds are {number:g}ms" if number >= 1 else ""
        raise OptionError(
            f"--latency {latency}: give a share such as 0.5, or a time such as 12ms{meant}"
        )
    return None, number


def plain(value: Any) -> Any:
    """A choice as JSON has it: of data and functions only what kind of thing they are."""
    if not _is_plain(value):
        return f"a {type(value).__name__}"
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | os.PathLike)


def _silent(step: str, done: int, total: int, detail: str = "") -> None:
    """Tell nobody."""


class Timer:
    """Seconds per step."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress: Progress = progress or _silent

    def again(self) -> Timer:
        """A timer that goes on from here, while this one may go on elsewhere."""
        timer = Timer(self._progress)
        timer.seconds |= self.seconds
        return timer

    @contextmanager
    def step(self, name: str) -> Iterator[StepProgress]:
        self._progress(name, 0, 1)
        start = time.perf_counter()
        yield partial(self._progress, name)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self._progress(name, 1, 1)
