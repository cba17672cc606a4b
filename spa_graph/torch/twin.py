"""A module's ONNX export beside it: where calibration data is looked at, and weights are refitted.

The export is the same network, with its weights under the names of the module's parameters
(`frontends/torch/exporting.py`), and keeps to the module's coupled channels (`coupling/guide.py`).
So what is chosen there fits the module, and what is refitted there goes back by name. In the end
both must compute the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spa_graph.coupling.analysis import Coupling
from spa_graph.coupling.guide import Guide
from spa_graph.errors import ModelError, VerificationError
from spa_graph.frontends.onnx import files
from spa_graph.frontends.torch.calls import Call, randomised
from spa_graph.frontends.torch.exporting import Exported, export
from spa_graph.frontends.torch.reader import named_state, tied_names
from spa_graph.passes import network
from spa_graph.passes.calibrated import Calibrated, calibrate
from spa_graph.passes.network import Analysis, Pruned
from spa_graph.passes.options import Options, Timer
from spa_graph.passes.pipeline import Choice, choose, rank
from spa_graph.passes.reconstruct import reconstruct
from spa_graph.passes.reconstruct.sites import Site
from spa_graph.passes.report import calibration_report
from spa_graph.plan import Kept, Plan
from spa_graph.runtime.sessions import open_session, run
from spa_graph.runtime.verify import Agreement
from spa_graph.torch.biases import add_biases, has_room
from spa_graph.torch.modes import in_mode
from spa_graph.torch.pipeline import ModuleAnalysis, Outcome
from spa_graph.torch.proof import Proof
from spa_graph.torch.samples import as_calibration

RUNNABLE = (torch.float32, torch.float64, torch.float16)


@dataclass(slots=True, eq=False)
class Twin:
    """The export of a module, with what calibration data says.

    of_guide: the export's channel of each of the module's, -1 if that stays.
    """

    module: ModuleAnalysis
    exported: Exported
    onnx: Analysis
    of_guide: NDArray[np.int64]
    calibrated: Calibrated
    options: Options
    timer: Timer
    folder: Path
    _choice: Choice | None = field(default=None, init=False)

    def choose(self) -> Kept:
        """Score and allocate on the export; which of the module's channels stay, (channels,)."""
        ranking = rank(self.onnx, self.options, self.timer, self.calibrated)
        self._choice = choose(ranking, self.options, self.timer)
        return self._in_module(self._choice.kept)

    def refit(self, outcome: Outcome, kept: Kept, plan: Plan) -> dict[str, Any]:
        """Give the pruned module weights that are refitted on the export.

        Args:
            kept: which of the module's channels stayed; (channels,).
            plan: the same as a plan, which learns of new biases.

        Returns:
            What calibration brought, as JSON-ready data.

        Raises:
            VerificationError: the module doesn't compute what its export does.
        """
        pruned = network.rewrite(self.onnx, self._in_export(kept), self.options, self.timer)
        found = None
        if self.options.method != "none":
            room = _Room(outcome.module, self.module.reading.tied)
            with self.timer.step("reconstruct") as progress:
                found = reconstruct(
                    self.onnx, pruned, self.calibrated, self.options, self.folder, progress,
                    room.adapt,
                )  # fmt: skip
            _take_over(outcome.module, self.exported, pruned)
            biases = {} if found.undone else room.added()
            add_biases(outcome.module, biases)
            plan.model |= {"biases": list(biases)} if biases else {}
        with self.timer.step("verify"):
            self._compare(outcome.module, pruned)
        return calibration_report(self.calibrated, self._choice, found)

    def _in_module(self, kept: Kept) -> Kept:
        return np.append(kept, True)[self.of_guide]

    def _in_export(self, kept: Kept) -> Kept:
        """Which of the export's channels stay.

        Raises:
            ModelError: the export ties channels of which some stay and others don't.
        """
        found = np.ones(self.onnx.coupling.count + 1, bool)
        found[self.of_guide[~kept]] = False
        if not np.array_equal(self._in_module(found[:-1]), kept):
            raise ModelError(
                "the ONNX export ties channels that can go one by one in the module, and the "
                "criterion chose so: use a criterion that needs no gradients, or no calibration"
            )
        return found[:-1]

    def _compare(self, module: nn.Module, pruned: Pruned) -> Agreement:
        """Both must give the same for random inputs, at all sizes."""
        path = self.folder / "twin.onnx"
        files.write(pruned.model, path)
        names = [str(value.name) for value in pruned.model.graph.inputs]
        calls = [randomised(call, seed) for seed, call in enumerate(self.module.traced.calls)]
        with files.openable(path) as opened:
            session = open_session(opened, plain=True)
            wanted = [run(session, feeds(self.module, call, names)) for call in calls]
        proof = Proof(calls, [list(map(torch.from_numpy, each)) for each in wanted])
        try:
            with in_mode(module, training=False):
                return proof.of(_Tensors(module))
        except VerificationError as error:
            raise VerificationError(f"the module is not what was refitted: {error}") from error


@contextmanager
def twin(analysis: ModuleAnalysis, options: Options, timer: Timer) -> Iterator[Twin | None]:
    """The export of a module, calibrated; None without calibration data.

    Raises:
        ModelError: the module can't be exported.
        OptionError: the data can't be read, or doesn't fit the module.
    """
    if options.calibrate is None:
        yield None
        return
    _check_types(analysis.model)
    with timer.step("export"):
        exported = export(analysis.traced, type(analysis.model).__name__)
    guide = _guide(analysis, exported)
    chosen = replace(options, exclude=(), exact=False)  # the guide leaves out what these do
    onnx = network.prepare(exported.model, chosen, timer, guide)
    of_guide = _of_guide(onnx.coupling, guide)
    given = replace(chosen, calibrate=as_calibration(options.calibrate, onnx.graph.inputs))
    with tempfile.TemporaryDirectory(prefix=".spa-prune.") as folder:
        calibrated = calibrate(onnx, given, timer, Path(folder))
        settled = calibrated.settle(given)
        yield Twin(analysis, exported, onnx, of_guide, calibrated, settled, timer, Path(folder))


def _check_types(model: nn.Module) -> None:
    for name, tensor in named_state(model):
        if tensor.is_floating_point() and tensor.dtype not in RUNNABLE:
            raise ModelError(
                f"calibration runs in ONNX Runtime, which has no {tensor.dtype} on the CPU "
                f"(`{name}`): prune model.float(), and convert the result"
            )


def _guide(analysis: ModuleAnalysis, exported: Exported) -> Guide:
    """The module's coupled channels, by the initializers of its export."""
    coupling, tied = analysis.coupling, analysis.reading.tied
    stored = exported.model.graph.initializers
    found = {}
    for use in coupling.relations.uses:
        shape = coupling.graph.parameters[use.parameter].shape
        channels = tuple(map(coupling.channel_of, use.axes))
        for name in tied.get(use.parameter, ()):
            if name in stored and _sizes(stored[name]) == exported.in_model(name, shape):
                found[name] = exported.in_model(name, channels)
    return Guide(coupling.count, found)


def _sizes(value: ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None
    return tuple(value.const_value.shape.numpy())


def _of_guide(coupling: Coupling, guide: Guide) -> NDArray[np.int64]:
    found = None if coupling.guide is None else coupling.channel_of(coupling.guide)
    return np.full(guide.count, -1) if found is None else found


class _Room:
    """What of an export may be refitted: what the module has a parameter for."""

    def __init__(self, module: nn.Module, tied: dict[str, list[str]]) -> None:
        self._module = module
        self._state = {name for name, _ in named_state(module)}
        self._tied = {name for names in tied.values() if len(names) > 1 for name in names}
        self._new: dict[str, Site] = {}

    def adapt(self, site: Site) -> Site | None:
        """A site without what the module has no place for."""
        if site.name not in self._state:
            return None
        if site.bias is None:
            return site
        node, slot = site.bias
        value = node.inputs[slot] if slot < len(node.inputs) else None
        if value is None:
            if site.name in self._tied or not has_room(self._module, site.name):
                return replace(site, bias=None)
            self._new[site.name] = site
            return site
        alone = len(value.uses()) == len(site.nodes) and value.name not in self._tied
        return site if value.name in self._state and alone else replace(site, bias=None)

    def added(self) -> dict[str, NDArray[Any]]:
        """The biases that weren't there before, by the weights of their layers."""
        found = {}
        for name, site in self._new.items():
            assert site.bias is not None
            node, slot = site.bias
            value = node.inputs[slot] if slot < len(node.inputs) else None
            if value is not None:
                assert value.const_value is not None
                found[name] = value.const_value.numpy()
        return found


def _take_over(module: nn.Module, exported: Exported, pruned: Pruned) -> None:
    """Copy weights from a pruned export into the pruned module, by name."""
    stored = pruned.model.graph.initializers
    same = {other: names[0] for names in tied_names(module).values() for other in names}
    done = set()
    for name, tensor in named_state(module):
        value = stored.get(name)
        if value is None or value.const_value is None or same[name] in done:
            continue
        array = exported.in_module(name, value.const_value.numpy())
        if array.shape != tuple(tensor.shape):
            raise VerificationError(
                f"`{name}` is {list(tensor.shape)} in the module, {list(array.shape)} in its export"
            )
        done.add(same[name])
        tensor.detach().copy_(torch.from_numpy(np.array(array)))


def feeds(analysis: ModuleAnalysis, call: Call, names: list[str]) -> dict[str, NDArray[Any]]:
    """What an export's inputs take in a call.

    Raises:
        ModelError: it has inputs that are no arguments of the module, or lacks some.
    """
    given = [leaf for leaf in analysis.traced.flat(call) if isinstance(leaf, Tensor)]
    if len(given) != len(names):
        raise ModelError(
            f"the ONNX export has {len(names)} inputs ({', '.join(names)}), where the module takes "
            f"{len(given)} tensors"
        )
    return {name: each.detach().cpu().numpy() for name, each in zip(names, given, strict=True)}


class _Tensors(nn.Module):
    """A module's outputs that are tensors, as its export has them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        found = pytree.tree_leaves(self.module(*args, **kwargs))
        return [leaf for leaf in found if isinstance(leaf, Tensor)]
