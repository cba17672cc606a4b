"""scikit-learn's multi-layer perceptron, trained on MNIST digits, by skl2onnx.

pip install -r benchmarks/frameworks/requirements-sklearn.txt
python benchmarks/frameworks/train_sklearn.py FOLDER
"""

from __future__ import annotations

from pathlib import Path

import exporting
from skl2onnx import to_onnx
from sklearn.neural_network import MLPClassifier


def perceptron(path: Path, small: bool) -> None:
    images, labels = exporting.training_digits(path)
    rows = images.reshape(len(images), -1)
    widths = (32, 24) if small else (256, 128)
    model = MLPClassifier(widths, early_stopping=True, random_state=0).fit(rows, labels)
    path.write_bytes(to_onnx(model, rows[:1], options={"zipmap": False}).SerializeToString())


if __name__ == "__main__":
    exporting.main(
        "scikit-learn",
        {"sklearn-digits-mlp": perceptron},
        ["scikit-learn", "skl2onnx", "onnx"],
        task=exporting.DIGITS,
    )
