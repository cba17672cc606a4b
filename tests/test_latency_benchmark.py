"""How benchmarks/latency.py finds networks that are equally fast, and writes its page."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import latency
from spa_graph.errors import BudgetError


class Network:
    """Its latency is the FLOPs' square root, in steps; budgets of latency are missed a little.

    Args:
        step: how far latencies that FLOPs lead to are apart.
        missed: how much longer a network takes than was asked for.
    """

    def __init__(self, step: float, missed: float) -> None:
        self.step, self.missed = step, missed
        self.analysis = SimpleNamespace(original=None)
        self.takes: dict[str, float] = {"original.onnx": 1.0}

    def prune(
        self, path: Path, *, verify: bool, flops: float = 0.0, latency: float = 0.0
    ) -> SimpleNamespace:
        assert not verify
        if flops and flops < 0.1:
            raise BudgetError("the smallest possible is 0.1")
        takes = round(flops**0.5 / self.step) * self.step if flops else latency * self.missed
        self.takes[path.name] = takes
        return SimpleNamespace(plan=takes, report={"ratio": {"flops": flops or latency**2}})


@pytest.fixture(autouse=True)
def by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks are compared by what they say, not by a clock."""

    def against(
        network: Network, path: Path, other: Path, seconds: float = 0.0
    ) -> tuple[float, tuple[float, float]]:
        del seconds
        ratio = network.takes[path.name] / network.takes[other.name]
        return ratio, (ratio, ratio)

    monkeypatch.setattr(latency, "against", against)
    monkeypatch.setattr(latency.files, "write", lambda *_: None)


@pytest.mark.parametrize(("step", "missed"), [(0.001, 1.0), (0.001, 1.04), (0.2, 0.96)])
@pytest.mark.parametrize("share", latency.SHARES)
def test_a_pair_is_equally_fast_also_where_flops_miss_the_share(
    share: float, step: float, missed: float
) -> None:
    network: Any = Network(step, missed)
    pair = latency.equally_fast(network, share, Path())
    assert pair["reached"] == pytest.approx(share, abs=max(step / 2, latency.EQUAL * share) + 1e-9)
    assert pair["flops"] == pytest.approx(pair["reached"])  # the plans say how long they take
    assert pair["latency"] / pair["flops"] == pytest.approx(pair["ratio"])
    assert abs(pair["ratio"] - 1) <= latency.EQUAL
    assert pair["by_flops"] > 0.1


def test_what_waits_for_an_idle_machine_says_when_it_is_done(tmp_path: Path) -> None:
    flag = tmp_path / "idle"
    flag.touch()
    with latency.idle(flag):
        assert flag.exists()
    assert not flag.exists()


def test_parts_of_the_page_are_replaced_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "latency.md"
    parts = ("architectures", "full size", "accuracy")
    page.write_text("".join(f"# {p}\n<!-- {p} -->\nold\n<!-- end of {p} -->\n" for p in parts))
    monkeypatch.setattr(latency, "PAGE", page)
    pair = {
        "reached": 0.5, "latency": 0.9, "flops": 0.8, "by_latency": 0.4, "by_flops": 0.3,
        "ratio": 1.0, "interval": [0.99, 1.01],
    }  # fmt: skip
    pairs = [pair, pair | {"latency": 0.7, "flops": 0.7}]
    told = {"name": "net", "metric": "accuracy", "dense": 0.95, "pairs": pairs}
    latency.render([], [told | {"measured_on": ["a machine"]}])
    text = page.read_text()
    assert text.count("old") == 2
    assert (
        "Of 2 pairs" in text and "better metric in 1, the same in 1, mean difference +0.050" in text
    )
    assert "| net | accuracy | 0.9500 | 0.50 | 0.9000 | 0.8000 | 0.40, 0.30 |" in text
    assert "* a machine\n" in text
    latency.render([], [told | {"measured_on": ["another machine"]}])
    assert page.read_text() == text.replace("a machine", "another machine")
