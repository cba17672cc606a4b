"""The Plan: which elements of which stored weights stay, as data.

    {"format": "spa-plan/1",
     "model": {"name": ..., "operators": ..., "parameters": ...,
               "shapes": {"<initializer>": [...]}, "attention": "heads", "groups": "groups"},
     "kept": {"<initializer>": {"<axis>": [index, ...]}},
     "kept_per_use": {"<initializer>": [{"node": "<consumer's first output>", "input": 1,
                                         "kept": {"<axis>": [...]}}]}}

Weights that stay whole are not listed; `shapes` are those of the others before pruning, and a plan
written by hand may leave them out. `kept_per_use` holds initializers whose uses end up pruned
differently; a use that stays whole has an empty `kept` there.

The `model` of a PyTorch module's plan also tells the `attributes` of its parts that state sizes,
all names of `tied` weights by the first one, and the weights of layers that a refit gave `biases`.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.analysis import Coupling
from spa_graph.coupling.relations import Use
from spa_graph.errors import OptionError

FORMAT = "spa-plan/1"
Kept = NDArray[np.bool_]
AxisIndices = dict[int, NDArray[np.int64]]


@dataclass(slots=True, eq=False)
class Plan:
    """Kept positions per axis, of each initializer or of each of its uses (node, input)."""

    model: dict[str, Any]
    kept: dict[str, AxisIndices] = field(default_factory=dict)
    kept_per_use: dict[str, dict[tuple[str, int], AxisIndices]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-ready data."""
        data: dict[str, Any] = {
            "format": FORMAT,
            "model": self.model,
            "kept": {name: _plain(axes) for name, axes in self.kept.items()},
        }
        if self.kept_per_use:
            data["kept_per_use"] = {
                name: [
                    {"node": node, "input": slot, "kept": _plain(axes)}
                    for (node, slot), axes in uses.items()
                ]
                for name, uses in self.kept_per_use.items()
            }
        return data

    def then(self, later: Plan) -> Plan:
        """One plan that does what this one and a later one do, the later on this one's result.

        Plans of modules only: both list whole weights (`kept`), with their shapes.

        Raises:
            OptionError: the later plan is for something else than what this one leaves.
        """
        if self.kept_per_use or later.kept_per_use:
            raise OptionError("plans that treat uses of one weight differently can't be joined")
        shapes, kept = self.model["shapes"] | {}, dict(self.kept)
        for name, axes in later.kept.items():
            told, first = later.model["shapes"][name], self.kept.get(name, {})
            shapes.setdefault(name, told)
            if self.left(name, shapes[name]) != told:
                raise OptionError(
                    f"the later plan is for another network: its weight `{name}` is {told}, here "
                    f"{self.left(name, shapes[name])} is left"
                )
            kept[name] = first | {
                axis: first[axis][index] if axis in first else index for axis, index in axes.items()
            }
        model = later.model | {"shapes": shapes}
        stated = _merged(self.model.get("attributes", {}), later.model.get("attributes", {}))
        biases = [*dict.fromkeys(self.model.get("biases", []) + later.model.get("biases", []))]
        tied = self.model.get("tied", {}) | later.model.get("tied", {})
        also = {"attributes": stated, "biases": biases, "tied": tied}
        return Plan(model | {key: value for key, value in also.items() if value}, kept)

    def since(self, earlier: Plan) -> Plan:
        """What this plan takes beyond an earlier one: `earlier.then(...)` of it is this plan.

        Plans of modules only, as of `then`.

        Raises:
            OptionError: it leaves something that the earlier one took.
        """
        shapes, kept = self.model["shapes"], {}
        lacking = [
            name
            for name, axes in earlier.kept.items()
            for axis, index in axes.items()
            if not np.isin(self.kept.get(name, {}).get(axis, [-1]), index).all()
        ]
        if lacking or self.kept_per_use or earlier.kept_per_use:
            raise OptionError("the plan leaves what an earlier one took away")
        for name, axes in self.kept.items():
            first = earlier.kept.get(name, {})
            told = earlier.left(name, shapes[name])
            at = {a: np.searchsorted(first[a], i) if a in first else i for a, i in axes.items()}
            kept[name] = {axis: index for axis, index in at.items() if len(index) < told[axis]}
        kept = {name: axes for name, axes in kept.items() if axes}
        left = {name: earlier.left(name, shapes[name]) for name in kept}
        return Plan(self.model | {"shapes": left}, kept)

    def left(self, name: str, shape: Sequence[int]) -> list[int]:
        """What is left of a weight of this shape."""
        axes = self.kept.get(name, {})
        return [len(axes[i]) if i in axes else size for i, size in enumerate(shape)]

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """Read a plan back.

        Raises:
            OptionError: it is not a plan, or of another format.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise OptionError(f"not a plan: it must be a JSON object with format {FORMAT!r}")
        try:
            return cls(
                model=_model(data.get("model", {})),
                kept={name: _indices(axes) for name, axes in data.get("kept", {}).items()},
                kept_per_use={
                    name: {(u["node"], int(u["input"])): _indices(u["kept"]) for u in uses}
                    for name, uses in data.get("kept_per_use", {}).items()
                },
            )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise OptionError(f"the plan is malformed: {error!r}") from error

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json()) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Plan:
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise OptionError(f"cannot read plan {path}: {error.strerror}") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise OptionError(f"plan {path} is not JSON: {error}") from error


def _model(data: Any) -> dict[str, Any]:
    model = dict(data)
    if "shapes" in model:
        model["shapes"] = {name: [*map(int, shape)] for name, shape in model["shapes"].items()}
    return model


def _merged(
    first: dict[str, dict[str, Any]], later: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Attributes by module; the later ones win."""
    return {name: first.get(name, {}) | later.get(name, {}) for name in {**first, **later}}


def _plain(axes: AxisIndices) -> dict[str, list[int]]:
    return {str(axis): index.tolist() for axis, index in sorted(axes.items())}


def _indices(axes: Mapping[str, Any]) -> AxisIndices:
    found = {}
    for axis, index in axes.items():
        if int(axis) < 0:
            raise ValueError(f"axis {axis}: axes are counted from 0")
        positions = np.asarray(index)
        if positions.ndim != 1 or not positions.size or positions.dtype.kind != "i":
            raise ValueError(f"axis {axis}: the kept positions are not a list of integers")
        if (np.diff(positions) <= 0).any() or positions[0] < 0:
            raise ValueError(f"axis {axis}: the kept positions are not in ascending order")
        found[int(axis)] = positions.astype(np.int64)
    return found


# --- kept channels <-> plan -------------------------------------------------------------------


def use_slices(coupling: Coupling, use: Use, kept: Kept) -> AxisIndices:
    """The kept positions of every axis of one use that loses some."""
    found = {}
    for position, axis in enumerate(use.axes):
        stays = coupling.kept_elements(axis, kept)
        if stays is not None:
            found[position] = np.flatnonzero(stays)
    return found


def same_slices(first: AxisIndices, second: AxisIndices) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(first[axis], second[axis]) for axis in first
    )


def make_plan(coupling: Coupling, kept: Kept) -> Plan:
    """The plan that keeps these channels; `kept` has shape (channels,)."""
    graph = coupling.graph
    plan = Plan(
        {"name": graph.name, "operators": len(graph.operators), "parameters": len(graph.parameters)}
    )
    by_parameter: dict[str, list[tuple[Use, AxisIndices]]] = {}
    for use in coupling.relations.uses:
        by_parameter.setdefault(use.parameter, []).append((use, use_slices(coupling, use, kept)))
    for name, uses in by_parameter.items():
        first = uses[0][1]
        if all(same_slices(first, slices) for _, slices in uses):
            if first:
                plan.kept[name] = first
        else:
            plan.kept_per_use[name] = {_place(coupling, use): slices for use, slices in uses}
    plan.model["shapes"] = {name: [*graph.parameters[name].shape] for name in _cut(plan)}
    return plan


def _cut(plan: Plan) -> list[str]:
    """The weights that a plan makes smaller."""
    return [*dict.fromkeys([*plan.kept, *plan.kept_per_use])]


def _place(coupling: Coupling, use: Use) -> tuple[str, int]:
    outputs = coupling.graph.operators[use.operator].outputs
    return next(filter(None, outputs), ""), use.slot


def kept_channels(coupling: Coupling, plan: Plan, *, partial: bool = False) -> Kept:
    """The channels of this network that a plan keeps; shape (channels,).

    Args:
        partial: the plan may leave weights out; what these lose follows from the others.

    Raises:
        OptionError: the plan is for another network, or breaks a coupling of this one.
    """
    kept = np.ones(coupling.count, bool)
    plan = _renamed(plan, coupling.graph.parameters)
    _check_weights(coupling, plan)
    for use in coupling.relations.uses:
        for position, index in _planned(coupling, plan, use).items():
            _drop(coupling, kept, use, position, index)
    _check_result(coupling, plan, kept, partial=partial)
    return kept


def _renamed(plan: Plan, known: Container[str]) -> Plan:
    """The plan by the names that tied weights go by here: an export keeps one of them."""
    new = {
        name: next((other for other in names if other in known), name)
        for name, names in plan.model.get("tied", {}).items()
        if name not in known
    }
    if not new:
        return plan
    shapes = {new.get(name, name): shape for name, shape in plan.model.get("shapes", {}).items()}
    kept = {new.get(name, name): axes for name, axes in plan.kept.items()}
    return replace(plan, model=plan.model | {"shapes": shapes}, kept=kept)


def _check_weights(coupling: Coupling, plan: Plan) -> None:
    shapes = plan.model.get("shapes", {})
    for name in _cut(plan):
        parameter = coupling.graph.parameters.get(name)
        if parameter is None:
            raise OptionError(f"the plan is for another network: it has no weight `{name}`")
        if name in shapes and shapes[name] != list(parameter.shape):
            raise OptionError(
                f"the plan is for another network: its weight `{name}` is {shapes[name]}, not "
                f"{list(parameter.shape)}"
            )


def _planned(coupling: Coupling, plan: Plan, use: Use) -> AxisIndices:
    if use.parameter in plan.kept:
        return plan.kept[use.parameter]
    return plan.kept_per_use.get(use.parameter, {}).get(_place(coupling, use), {})


def _drop(
    coupling: Coupling, kept: Kept, use: Use, position: int, index: NDArray[np.int64]
) -> None:
    where = f"weight `{use.parameter}`, axis {position}"
    if position >= len(use.axes) or index[-1] >= coupling.size(use.axes[position]):
        raise OptionError(f"the plan is for another network: {where} has no such positions")
    stays = np.zeros(coupling.size(use.axes[position]), bool)
    stays[index] = True
    channel = coupling.channel_of(use.axes[position])
    gone = channel[~stays] if channel is not None else np.array([-1])
    if (gone < 0).any() and not stays.all():
        reason = coupling.relations.reason(use.axes[position]) or "it is tied to a frozen axis"
        raise OptionError(f"the plan cuts {where}, which can't be pruned here: {reason}")
    kept[gone] = False


def _check_result(coupling: Coupling, plan: Plan, kept: Kept, *, partial: bool) -> None:
    """The plan must say of every weight what its couplings demand."""
    listed = {*_cut(plan)}
    for use in coupling.relations.uses:
        if partial and use.parameter not in listed:
            continue
        if not same_slices(use_slices(coupling, use, kept), _planned(coupling, plan, use)):
            raise OptionError(
                f"the plan breaks a coupling: weight `{use.parameter}` must lose the channels "
                "that the weights it is coupled with lose"
            )
    for group in coupling.groups:
        left = int(kept[group.start : group.stop].sum())
        if left < group.least:
            raise OptionError(
                f"the plan leaves {left or 'no'} channel{'s' * (left > 1)} in group "
                f"`{group.name}`, which needs {group.least} at least"
            )
