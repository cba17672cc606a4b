"""Tests of PyTorch modules."""

import torch

# pytest-xdist fills the cores; threads of several processes that wait for each other take ten times
# as long.
torch.set_num_threads(1)
