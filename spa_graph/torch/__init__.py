"""Prune PyTorch modules: the same engine, on what torch.export sees of a module.

import spa_graph.torch as spa

pruned = spa.prune(model, example_inputs, flops=0.5)  # a new module; the input is untouched
spa.save(pruned, "small.pt")
small = spa.load("small.pt", MyModel())
"""

from spa_graph.torch.api import analyze, apply_plan, plan_of, prune, report_of
from spa_graph.torch.benchmark import benchmark
from spa_graph.torch.distillation import Teacher
from spa_graph.torch.distributed import agree
from spa_graph.torch.files import load, save
from spa_graph.torch.finetuning import finetune
from spa_graph.torch.in_place import apply_plan_, follow
from spa_graph.torch.penalties import GroupPenalty, group_penalty
from spa_graph.torch.rewinding import rewind
from spa_graph.torch.schedules import Schedule, ratios

__all__ = [
    "GroupPenalty",
    "Schedule",
    "Teacher",
    "agree",
    "analyze",
    "apply_plan",
    "apply_plan_",
    "benchmark",
    "finetune",
    "follow",
    "group_penalty",
    "load",
    "plan_of",
    "prune",
    "ratios",
    "report_of",
    "rewind",
    "save",
]
