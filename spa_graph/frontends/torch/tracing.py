"""`nn.Module` -> a functional graph of ATen operators, by torch.export.

The graph is the one that export calls the inference IR without decompositions: no operator changes
its operands, and what people write (linear, layer_norm, scaled_dot_product_attention) is still one
operator. Parameters and buffers are read by their fully qualified names.

Unless `dynamic_shapes` are given, the first axis of the inputs is taken for the batch and left free
where the module lets it.
"""

from __future__ import annotations

import copy
import io
import logging
import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from spa_graph.errors import ModelError
from spa_graph.frontends.torch.calls import (
    Call,
    batch_size,
    bound_arguments,
    has_batch,
    resized,
    with_shapes,
)
from spa_graph.frontends.torch.sizes import Sizes, choose_sizes

_TORCH = Path(torch.__file__).parent
UNINITIALIZED = (nn.UninitializedParameter, nn.UninitializedBuffer)
LIBRARY = (f"{_TORCH}{os.sep}", "<frozen", "<eval")


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """A module as a graph.

    module: runs like the original; its nodes are ATen operators, its state is the original's.
    calls: what it was traced with, and a call at the other sizes if some are free.
    program: what torch.export gave, before its operators were made functional; None for a graph
        that was changed since. Exporters start there: a `reshape` that is a mere view of what the
        operators of this machine give is none of what those give that they write.
    given: what torch.export was given: a call, and which of its sizes are free.
    """

    module: fx.GraphModule
    sizes: Sizes
    calls: list[Call]
    program: Any = None
    given: tuple[Call, Any] | None = None

    def flat(self, call: Call) -> list[Any]:
        """What the graph's placeholders take in a call."""
        return fx_pytree.tree_flatten_spec((call.args, call.kwargs), self.module._in_spec)

    def copied(self) -> fx.GraphModule:
        """A copy of the graph, with a state of its own."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, of how it keeps arguments
            return copy.deepcopy(self.module)

    @property
    def measured(self) -> tuple[Call, int]:
        """A call at sizes that were chosen for the analysis, and which choice that is."""
        return (self.calls[-1], 1) if len(self.calls) > 1 else (self.calls[0], 0)


def trace(model: nn.Module, call: Call, dynamic_shapes: Any = None) -> Traced:
    """Trace a module in evaluation mode; its state is shared with the result.

    Raises:
        ModelError: the module can't be run or traced: why, where, and what to do.
    """
    _run_once(model, call)
    if dynamic_shapes is not None:
        return _traced(*_export(model, call, dynamic_shapes), call, (call, dynamic_shapes))
    batch = batch_size(call)
    if batch == 0:
        raise ModelError("the example inputs are empty: give at least one sample")
    if batch is not None:
        wider = call if batch > 1 else resized(call, 2)  # export takes a size of 1 for a constant
        given = (wider, _free_batch(model, wider))
        try:
            programs = _export(model, *given)
        except ModelError:
            pass  # it may be traceable for its own sizes
        else:
            traced = _traced(*programs, call, given, batched=True)
            if traced.sizes.dynamic or wider is call:
                return traced  # else it was fixed at a size that isn't the example's
    return _traced(*_export(model, call, None), call, (call, None))


def exported(traced: Traced, smaller: nn.Module) -> Any:
    """A smaller graph as a program, whose sizes are free where those of the original were."""
    assert traced.given is not None
    call, shapes = traced.given
    if not traced.sizes.dynamic:
        call, shapes = traced.calls[0], None
    with _quiet(), torch.no_grad():
        return _program(smaller, call, shapes)


def check_module(model: nn.Module) -> None:
    """Whether this is a module whose weights are at hand, in one place."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"a {type(model).__name__} is no torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "a TorchScript module can't be traced: give the module that it was made of, or save it "
            "and prune the file with spa-prune"
        )
    state = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, each in state if isinstance(each, UNINITIALIZED)]
    if lazy:
        raise ModelError(f"`{lazy[0]}` has no shape yet: run the module once before pruning it")
    meta = [name for name, tensor in state if tensor.is_meta]
    if meta:
        raise ModelError(
            f"`{meta[0]}` is on the meta device, so it has no values: load the weights first"
        )
    devices = {str(tensor.device): name for name, tensor in state}
    if len(devices) > 1:
        places = ", ".join(f"`{name}` on {device}" for device, name in sorted(devices.items()))
        raise ModelError(f"the module is on several devices ({places}): move it to one first")


def _run_once(model: nn.Module, call: Call) -> None:
    bound_arguments(model, call)
    try:
        call.run(model)
    except Exception as error:  # whatever the user's module raises
        shapes = ", ".join(map(_described, call.leaves()))
        raise ModelError(
            f"the module fails on the example inputs ({shapes}){where(error)}: {short(error)}"
        ) from error


def _described(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return f"{leaf.dtype}{list(leaf.shape)}"
    if hasattr(leaf, "shape"):  # of another framework: all its numbers say nothing
        return f"a {type(leaf).__name__}"
    return repr(leaf)


def _free_batch(model: nn.Module, call: Call) -> dict[str, Any]:
    batch = batch_size(call)
    auto = torch.export.Dim.AUTO

    def free(leaf: Any) -> Any:
        return {0: auto} if has_batch(leaf, batch) else None

    named = bound_arguments(model, call)
    return {name: pytree.tree_map(free, value) for name, value in named.items()}


def _export(model: nn.Module, call: Call, dynamic_shapes: Any) -> tuple[Any, Any, fx.GraphModule]:
    """What torch.export gives, that with functional operators only, and as a module."""
    try:
        with _quiet(), torch.no_grad():
            program = _program(model, call, dynamic_shapes)
            functional = program.run_decompositions({})
            return program, functional, functional.module(check_guards=False)
    except Exception as error:  # a family of many kinds without a common base
        advice = "change that line: no branches on values of tensors, and tensors as outputs"
        if "pytree" in short(error):
            advice = "return tensors, tuples or dicts (of transformers: pass use_cache=False)"
        elif "nonexistent attribute" in short(error):  # as where it is `meta`, which graphs have
            advice = "give that part of the module another name"
        if dynamic_shapes is not None:
            advice = "correct dynamic_shapes, or " + advice
        raise ModelError(
            f"torch.export can't trace {type(model).__name__}{where(error)}: {short(error)}; "
            f"{advice}"
        ) from error


def _program(model: nn.Module, call: Call, dynamic_shapes: Any) -> Any:
    return torch.export.export(
        model, call.args, call.kwargs, dynamic_shapes=dynamic_shapes, strict=False
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch.export says beside its errors: warnings, logs, the graph so far."""
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def where(error: BaseException) -> str:
    """The last line of the user's own code that an error passed, if there is one."""
    frames = list(_frames(error))
    return f" at {frames[-1].filename}:{frames[-1].lineno} (`{frames[-1].line}`)" if frames else ""


def _frames(error: BaseException) -> Iterator[traceback.FrameSummary]:
    here = str(Path(__file__).parents[2])
    for frame in traceback.extract_tb(error.__traceback__):
        if not frame.filename.startswith((*LIBRARY, here)):
            yield frame


def short(error: BaseException) -> str:
    """The first line of what an error says."""
    lines = [line.strip() for line in str(error).splitlines()]
    text = next((line for line in lines if line), type(error).__name__)
    return text if len(text) < 300 else text[:297] + "..."


def _traced(
    program: Any,
    functional: Any,
    module: fx.GraphModule,
    call: Call,
    given: tuple[Call, Any],
    *,
    batched: bool = False,
) -> Traced:
    _forget_layouts(module)
    sizes = choose_sizes(module, functional.range_constraints, batched=batched)
    traced = Traced(module, sizes, [call], program, given)
    if sizes.dynamic:
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        shapes = [_other_shape(node.meta.get("val"), sizes) for node in placeholders]
        flat = with_shapes(Call(tuple(traced.flat(call)), {}), shapes)
        args, kwargs = pytree.tree_unflatten(list(flat.args), module._in_spec)
        traced.calls.append(Call(args, kwargs))
    return traced


def _forget_layouts(module: fx.GraphModule) -> None:
    """Let a `reshape` be one again, in place.

    Where it was traced it was a view of what an operator gave; at other sizes, or on another
    machine, attention is computed by another implementation, whose result is laid out otherwise.
    """
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    module.recompile()


def _other_shape(value: Any, sizes: Sizes) -> tuple[int, ...] | None:
    return tuple(e.other for e in sizes.shape(value)) if isinstance(value, Tensor) else None
