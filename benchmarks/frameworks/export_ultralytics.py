"""YOLO networks by Ultralytics' own exporter.

    pip install -r benchmarks/frameworks/requirements-ultralytics.txt
    pip install --no-deps ultralytics==8.4.190
    python benchmarks/frameworks/export_ultralytics.py FOLDER

Weights are random: trained ones can't be had offline; statistics of BatchNorm are made random, too,
as trained ones are. Ultralytics and its networks are under AGPL-3.0: no file of it is kept here.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path

import exporting
import torch
from torch import nn
from ultralytics import YOLO

SIZE = 640
SMALL_SIZE = 64


def export(network: str, path: Path, small: bool) -> None:
    torch.manual_seed(0)
    model = YOLO(f"{network}.yaml")
    for module in model.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.running_mean, module.running_var, module.weight, module.bias):
                nn.init.uniform_(value, 0.5, 1.5)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{network}.pt"
        model.save(file)  # it exports to where it was loaded from
        written = YOLO(file).export(format="onnx", imgsz=SMALL_SIZE if small else SIZE)
        shutil.move(written, path)


NETWORKS: dict[str, exporting.Export] = {
    "yolov8n": partial(export, "yolov8n"),
    "yolo11n": partial(export, "yolo11n"),
}

if __name__ == "__main__":
    exporting.main("Ultralytics", NETWORKS, ["ultralytics", "torch", "onnx"])
