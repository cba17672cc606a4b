"""What pictures do with names and numbers of any kind."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from spa_graph.pictures.style import logarithmic, name_rows


def labels(axes: object) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]  # type: ignore[attr-defined]


def test_names_of_layers_stay_apart() -> None:
    names = [f"encoder.encoder.layer.{n}.attention.self.query.bias:0" for n in range(12)]
    axes = Figure().add_subplot()
    name_rows(axes, names)
    shown = labels(axes)
    assert len(set(shown)) == 12
    assert shown[7].startswith("7.attention")
    assert all(len(name) <= 24 for name in shown)


def test_one_name_keeps_its_start() -> None:
    axes = Figure().add_subplot()
    name_rows(axes, ["head.weight:0"])
    assert labels(axes) == ["head.weight:0"]


@pytest.mark.parametrize(("low", "high", "few"), [(0.6, 5.0, True), (1e-6, 1.0, False)])
def test_numbers_of_a_logarithmic_axis(low: float, high: float, few: bool) -> None:
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([low, high], [0, 1])
    logarithmic(axes)
    minor = [axes.xaxis.get_minor_formatter()(x, 0) for x in (2.0, 5.0)]
    assert minor == (["2", "5"] if few else ["", ""])
