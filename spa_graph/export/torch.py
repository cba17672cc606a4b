"""The smaller PyTorch module by a plan that was made on an ONNX export, whatever its weights are
called there."""

from __future__ import annotations

from typing import Any

import numpy as np

from spa_graph.errors import OptionError
from spa_graph.export.agreement import check_agreement
from spa_graph.export.given import check_type, framework
from spa_graph.export.stored import Array, GivenPlan, Match, StoredWeights
from spa_graph.plan import Plan

_TAKES = "to_torch takes an nn.Module"


def to_torch(
    model: Any,
    original: object,
    pruned: object,
    plan: GivenPlan,
    example_inputs: Any,
) -> Any:
    """The smaller module, with the pruned ONNX model's weights.

    Where the export has the module's names for its weights, `spa_graph.torch.apply_plan` does it;
    here names don't matter, as in TorchScript's exports.

    Args:
        model: the whole `nn.Module`; it isn't changed, and the result is in the mode that it is in.
        original: its ONNX export (a path or a model in memory).
        pruned: the pruned ONNX model.
        plan: what was kept; `result.plan`, or the file that `--plan` wrote.
        example_inputs: as of `spa_graph.torch.prune`.

    Raises:
        OptionError: torch isn't installed, the model is no module written in Python, the plan is
            for another network, or cuts what can't be cut in the module.
        VerificationError: the result doesn't compute what the pruned ONNX model does.
    """
    torch = framework("torch", "to_torch", "spa-prune[torch]")
    check_type(model, torch.nn.Module, f"{_TAKES}, not its file or weights")
    if isinstance(model, torch.jit.ScriptModule):
        raise OptionError(f"{_TAKES}, as it is in Python; this is a compiled one")
    import spa_graph.torch as spa
    from spa_graph.torch.modes import in_mode

    stored = StoredWeights(original, pruned, plan)
    state = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    found = {
        name: match
        for name, array in state.items()
        if array.size > 1 and (match := _find(stored, array)) is not None
    }
    if not found:
        raise OptionError(
            "none of the module's weights is stored in the ONNX model; if the module was trained "
            "since, export and prune it again"
        )
    kept = {
        name: {axis: index for axis, index in enumerate(match.kept) if index is not None}
        for name, match in found.items()
    }
    told = stored.plan.model
    blocks = {key: told[key] for key in told.keys() & {"attention", "groups"}}
    listed = Plan(blocks, {name: axes for name, axes in kept.items() if axes})
    small = spa.apply_plan(model, listed, example_inputs, partial=True)
    left = small.state_dict()
    with torch.no_grad():
        for name, match in found.items():
            if name in left and tuple(left[name].shape) == match.after.shape:
                left[name].copy_(torch.from_numpy(np.array(match.after)))

    def compute(feeds: dict[str, Array]) -> Any:
        # exporters write what inference computes, whatever mode the module is in
        with torch.no_grad(), in_mode(small, training=False):
            return small(*map(torch.from_numpy, feeds.values()))

    check_agreement(stored.after, compute, "PyTorch")
    return small


def _find(stored: StoredWeights, array: Array) -> Match | None:
    """A weight as it is stored, perhaps with the scale of a normalisation folded in.

    Results of a convolution are counted by the first axis of its kernel, of a transposed one by the
    second.
    """
    match = stored.find(array)
    for result in (0, 1) if match is None and array.ndim > 2 else ():
        match = match or stored.find_scaled(array, tuple(range(array.ndim)), result)
    return match
