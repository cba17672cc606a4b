"""scikit-learn's multi-layer perceptrons, trained on its digits, by skl2onnx.

    pip install -r benchmarks/frameworks/requirements-sklearn.txt
    python benchmarks/frameworks/export_sklearn.py FOLDER

Classes come as numbers or, by `zipmap`, as scikit-learn's own maps.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import exporting
import numpy as np
from skl2onnx import to_onnx
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def classifier(small: bool) -> BaseEstimator:
    return MLPClassifier((32, 24) if small else (512, 256), max_iter=20, random_state=0)


def pipeline(small: bool) -> BaseEstimator:
    return make_pipeline(StandardScaler(), classifier(small))


def regressor(small: bool) -> BaseEstimator:
    sizes = (32, 24) if small else (512, 256)
    return MLPRegressor(hidden_layer_sizes=sizes, activation="tanh", max_iter=20, random_state=0)


def export(build, path: Path, small: bool, zipmap: bool = False) -> None:  # type: ignore[no-untyped-def]
    data, targets = load_digits(return_X_y=True)
    data = data.astype(np.float32)
    model = build(small).fit(data, targets)
    options = {"zipmap": zipmap} if hasattr(model, "predict_proba") else None
    path.write_bytes(to_onnx(model, data[:1], options=options).SerializeToString())


NETWORKS: dict[str, exporting.Export] = {
    "sklearn-mlp": partial(export, classifier),
    "sklearn-mlp-zipmap": partial(export, classifier, zipmap=True),
    "sklearn-pipeline": partial(export, pipeline),
    "sklearn-regressor": partial(export, regressor),
}

if __name__ == "__main__":
    exporting.main("scikit-learn", NETWORKS, ["scikit-learn", "skl2onnx", "onnx"])
