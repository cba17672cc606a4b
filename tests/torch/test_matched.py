"""`--calibrate data-free:matched`: inner statistics become those that BatchNorms remember."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import spa_graph  # noqa: E402
import spa_graph.torch as spa  # noqa: E402
from spa_graph.errors import OptionError  # noqa: E402
from spa_graph.frontends.onnx import files, forms  # noqa: E402
from spa_graph.passes.calibrated import calibrate  # noqa: E402
from spa_graph.passes.network import prepare  # noqa: E402
from spa_graph.passes.options import Options, Timer  # noqa: E402
from spa_graph.runtime.calibration import Prober, matching  # noqa: E402
from spa_graph.studies.compare import compare  # noqa: E402
from tests.models import network  # noqa: E402
from tests.test_data_free import FOLDED, batch_normed  # noqa: E402
from tests.torch.torch_networks import settled  # noqa: E402

MATCHED = "data-free:matched"
BESIDE = """
beside (float[N,3,16,16] x, int64[N] label) => (float[N,8,14,14] y)
<float[8,3,3,3] w, float[8] one, float[8] zero, float[8] mean, float[8] variance,
 float[4,8] table, int64[2] axes = {2, 3}>
{
    a = Conv(x, w)
    n = BatchNormalization(a, one, zero, mean, variance)
    e = Gather(table, label)
    u = Unsqueeze(e, axes)
    y = Add(n, u)
}
"""


def grainy() -> onnx.ModelProto:
    """A network that was trained on what made-up images aren't like: each pixel by itself."""
    noise = np.random.default_rng(0).uniform(-1, 1, (32, 3, 16, 16)).astype(np.float32)
    return batch_normed(-1, 2, noise)


def samples(
    model: onnx.ModelProto, folder: Path, spec: str = MATCHED, **options: Any
) -> tuple[dict[str, Any], float]:
    """All samples by input, and how far inner statistics are from those that are stored."""
    chosen = Options(flops=0.5, calibrate=spec, **({"samples": 32} | options))
    analysis = prepare(forms.take(model)[0], chosen, Timer())
    data = calibrate(analysis, chosen, Timer(), folder)
    batches = [*chain(data.fitting, data.held_out, data.judging)]
    path = folder / "network.onnx"
    files.write(analysis.model, path)
    prober = Prober(lambda also: files.openable(path, also), analysis.graph.outputs)
    found = matching.distance(matching.layers(analysis.graph), batches, prober)
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}, found


def test_statistics_come_close_and_samples_stay_in_their_range(tmp_path: Path) -> None:
    model = grainy()
    plain, before = samples(model, tmp_path, "data-free")
    moved, after = samples(model, tmp_path)
    assert after < before / 4
    assert moved["x"].shape == plain["x"].shape and moved["x"].dtype == np.float32
    assert moved["x"].min() >= plain["x"].min() and moved["x"].max() <= plain["x"].max()
    assert len(np.unique(moved["x"].reshape(32, -1), axis=0)) == 32
    again, _ = samples(model, tmp_path)
    np.testing.assert_array_equal(moved["x"], again["x"])


def test_what_is_no_number_stays(tmp_path: Path) -> None:
    values = {"mean": np.full(8, 2.0, np.float32), "variance": np.full(8, 9.0, np.float32)}
    model = network(BESIDE, values=values)
    plain, before = samples(model, tmp_path, "data-free")
    moved, after = samples(model, tmp_path)
    np.testing.assert_array_equal(moved["label"], plain["label"])
    assert after < before


def fixed(batch: int) -> onnx.ModelProto:
    model = grainy()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return model


def test_a_fixed_batch_is_moved_at_once(tmp_path: Path) -> None:
    _, before = samples(fixed(8), tmp_path, "data-free")
    _, after = samples(fixed(8), tmp_path)
    assert after < before / 4


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (network(FOLDED), "the network has no BatchNormalization.*give --calibrate data-free"),
        (fixed(1), "takes 1 at once, too few for statistics"),
    ],
    ids=["folded", "one at once"],
)
def test_what_has_nothing_to_match_is_told(
    model: onnx.ModelProto, says: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=f"data-free:matched: .*{says}"):
        spa_graph.prune(model, flops=0.5, calibrate=MATCHED)
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    with pytest.raises(OptionError, match="data-free:matched is for pruning"):
        compare(path, path, data=MATCHED)


def test_a_report_says_how_samples_were_made() -> None:
    result = spa_graph.prune(batch_normed(-1, 2), flops=0.6, calibrate=MATCHED, samples=32)
    told = result.report["calibration"]["source"]
    assert told.startswith("data-free: matched images of 16 x 16, [-1, 1]")
    assert result.report["seconds"]["match samples"] > 0


def test_modules_have_their_batch_norms() -> None:
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3)]
    model = settled(nn.Sequential(*layers))
    pruned = spa.prune(model, torch.randn(2, 3, 12, 12), flops=0.5, calibrate=MATCHED, samples=16)
    assert "matched images of 12 x 12" in spa.report_of(pruned)["calibration"]["source"]
