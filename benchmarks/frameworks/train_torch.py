"""A PyTorch network of residual blocks, trained on MNIST digits, by torch.onnx.

pip install -r benchmarks/frameworks/requirements-torch.txt
python benchmarks/frameworks/train_torch.py FOLDER
"""

from __future__ import annotations

from pathlib import Path

import exporting
import torch
from torch import Tensor, nn

EPOCHS = 8
BATCH = 64


class Block(nn.Module):
    """Two convolutions beside a shortcut (ResNet, arXiv 1512.03385)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(width_in, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(y)) + self.shortcut(x))


def residual_network(width: int) -> nn.Sequential:
    """Three stages of one block."""
    blocks = [Block(1, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, exporting.CLASSES)]
    return nn.Sequential(*blocks, *head)


def trained(path: Path, small: bool) -> None:
    images, labels = map(torch.from_numpy, exporting.training_digits(path))
    torch.manual_seed(0)
    model = residual_network(8 if small else 24)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH):
            loss = nn.functional.cross_entropy(model(images[chosen][:, None]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    batch = {0: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        model, (images[:2][:, None],), path, dynamo=True, dynamic_shapes=(batch,),
        external_data=False, verbose=False,
    )  # fmt: skip


if __name__ == "__main__":
    exporting.main(
        "PyTorch", {"torch-digits-resnet": trained}, ["torch", "onnxscript", "onnx"],
        task=exporting.DIGITS,
    )  # fmt: skip
