"""Latency of modules next to each other, by the harness that measures ONNX networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from spa_graph.errors import OptionError
from spa_graph.frontends.torch.calls import as_call
from spa_graph.passes.options import Progress, Timer
from spa_graph.runtime.benchmark import interleaved, ratio_interval
from spa_graph.runtime.imported import said
from spa_graph.runtime.machine import machine, versions
from spa_graph.torch.modes import in_mode

MOST_RUNS = 1000


def benchmark(
    modules: Sequence[nn.Module],
    example_inputs: Any,
    *,
    compiled: bool = False,
    device: str = "cpu",
    seconds: float = 5.0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run modules in turn on the same inputs, without gradients.

    They are moved to the device and back; nothing else about them changes.

    Args:
        modules: ratios are those to the first.
        example_inputs: a tensor, a tuple of arguments, or a mapping of named ones.
        compiled: measure what `torch.compile` makes of them; compiling isn't timed.
        device: where to run, such as "cpu" or "cuda"; a run ends when the device has finished.
        seconds: how long to measure, at most 1000 runs of each.

    Returns:
        `modules`, each with its `name`, `parameters`, and in milliseconds `median_ms` and
        `quartiles_ms`; `ratios` to the first module, for each of the others the `median` and its
        95% confidence `interval`; `runs` of each, `device`, `threads`, `compiled`, `machine`,
        `versions`.

    Raises:
        OptionError: there is no such device, nothing to measure, or a module fails on the inputs.
    """
    if isinstance(modules, nn.Module) or not modules:  # some modules are sequences of their parts
        raise OptionError("give a list of one or more modules")
    for module in modules:
        if not isinstance(module, nn.Module):
            raise OptionError(f"a {type(module).__name__} is no module: {module!r:.80}")
    if not seconds > 0:
        raise OptionError(f"seconds must be above 0, not {seconds:g}")
    place = _device(device)
    call = as_call(example_inputs)
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, lambda tensor: tensor.to(place), (call.args, call.kwargs)
    )
    timer = Timer(progress)
    homes = [next((p.device for p in module.parameters()), place) for module in modules]
    try:
        with ExitStack() as modes, timer.step("measure") as step:
            for module in modules:
                modes.enter_context(in_mode(module, training=False))
            moved = [module.to(place) for module in modules]
            functions = [
                partial(_run, torch.compile(module) if compiled else module, args, kwargs, place)
                for module in moved
            ]
            for module in moved:
                _try(module, args, kwargs, place)
            timings = interleaved(functions, seconds=seconds, most=MOST_RUNS, progress=step)
    finally:
        for module, home in zip(modules, homes, strict=True):
            module.to(home)
    return {
        "machine": machine(),
        "versions": versions() | {"torch": torch.__version__},
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else str(place),
        "compiled": compiled,
        "threads": torch.get_num_threads(),
        "runs": len(timings[0].ms),
        "modules": [
            {
                "name": type(module).__name__,
                "parameters": sum(p.numel() for p in module.parameters()),
                "median_ms": timing.median,
                "quartiles_ms": list(timing.quartiles),
            }
            for module, timing in zip(modules, timings, strict=True)
        ],
        "ratios": [
            {
                "median": timing.median / timings[0].median,
                "interval": list(ratio_interval(timings[0], timing)),
            }
            for timing in timings[1:]
        ],
    }


def _device(name: str) -> torch.device:
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        first = str(error).splitlines()[0]
        raise OptionError(f"device {name}: this machine or torch has none: {first}") from error


def _try(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], place: torch.device
) -> None:
    try:
        _run(module, args, kwargs, place)
    except Exception as error:  # of the module's own forward
        raise OptionError(
            f"{type(module).__name__} fails on the example inputs: {said(error)}"
        ) from error


def _run(
    module: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], place: torch.device
) -> None:
    with torch.inference_mode():
        module(*args, **kwargs)
    if place.type != "cpu":
        torch.accelerator.synchronize(place)
