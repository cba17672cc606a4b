"""Prune PyTorch modules: the same engine, on what torch.export sees of a module.

import spa_graph.torch as spa

pruned = spa.prune(model, example_inputs, flops=0.5)  # a new module; the input is untouched
spa.save(pruned, "small.pt")
small = spa.load("small.pt", MyModel())
"""

from spa_graph.torch.api import analyze, apply_plan, plan_of, prune, report_of
from spa_graph.torch.benchmark import benchmark
from spa_graph.torch.files import load, save

__all__ = ["analyze", "apply_plan", "benchmark", "load", "plan_of", "prune", "report_of", "save"]
