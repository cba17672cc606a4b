"""Tests of PyTorch modules; each file skips itself where torch is missing."""

import contextlib

with contextlib.suppress(ModuleNotFoundError):
    import torch

    # pytest-xdist fills the cores; threads of several processes that wait for each other take ten
    # times as long.
    torch.set_num_threads(1)
